"""What each part of the method is worth: one thing changed at a time, judged in closed loop.

`python -m bench.ablate --model dit-digits` takes the plan as it is solved and changes its
forecaster (beta, K, ridge, the response that is reckoned with) on the same computed steps; the
schedule, with the same forecaster; and what it is solved from: the model's answers, the number of
calibration samples, the width of the sketch, the guidance scale, another step count. Beside it
stand the plans of `ditcache.tune`, from one candidate (which is refitted weights alone) to eight.
Every cell is PSNR to the uncached samples on the same held-out prompts and seeds. It goes on where
it stopped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import ditcache
import numpy as np
import torch
from ditcache import Plan, Profile
from ditcache.passes.accounts import Accounts
from ditcache.passes.error_diffusion import Array
from ditcache.passes.forecasters import EDF
from ditcache.passes.plan_from_profile import problem
from ditcache.passes.plan_parts import DENOISER
from ditcache.passes.portfolio import Candidate, guided_gram, schedule_of
from ditcache.passes.profile import RegionProfile
from ditcache.passes.schedules import standard_schedules
from ditcache.runtime.sketch import sketch_rows
from rich.console import Console
from torch import Tensor

from . import metrics
from .arguments import Parser, factor, folder, plain_messages, whole
from .environment import environment, write_json
from .ledger import Ledger
from .video_contest import WanSheets
from .workload import CALIBRATION_SEED, EVALUATION_SEED, WORKLOADS, Batch

BETAS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
DEPTHS = (1, 2, 3, 4)
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
RESPONSES = (0.0, 0.1, 0.3, 1.0)
ANSWERS = ((0.0,), (0.0, 2.0, 4.0), (-1.0, 2.0, 5.0), (0.0, 6.0), (0.0, 5.0, 10.0))
CANDIDATES = (1, 2, 4, 8)
COUNTS = (1, 2, 4, 8)
WIDTHS = (16, 64, 128, 256)
OTHER_STEPS = 30
PLAIN = ("taylor-2", "taylor-2-best", "lagrange-1-best", "lagrange-2-best")
STRONGER = 1.5
Make = Callable[[], Plan]
MODELS: dict[str, Any] = {**WORKLOADS, WanSheets.name: WanSheets}


@dataclass(frozen=True)
class Setting:
    """One run: the budget, how many samples are judged (`n`, from `seed` on) and calibrated on."""

    model: str
    speedup: float
    n: int = 32
    calibration: int = 16
    batch: int = 16
    steps: int = 50
    seed: int = EVALUATION_SEED


class Bench:
    """One model at one guidance and step count: uncached samples, profile, what a plan costs."""

    def __init__(self, setting: Setting, guidance: float | None = None) -> None:
        self.setting = setting
        make = MODELS[setting.model]
        self.workload: Any = make() if guidance is None else make(guidance)
        torch.compiler.reset()
        options: dict[str, Any] = {"inner": "eager", "remember": False, "guard": "off"}
        self.model: Any = torch.compile(self.workload.denoiser, backend="ditcache", options=options)
        self.batches = self.workload.batches(setting.n, setting.batch, seed=setting.seed)
        self.calibration = self.workload.batches(
            setting.calibration, setting.batch, seed=CALIBRATION_SEED, calibration=True
        )
        self.workload.sample(self.model, self.calibration[0], 3)

    def generate(self, i: int) -> Tensor:
        """The caller's loop: calibration batch i."""
        return self.workload.sample(self.model, self.calibration[i], self.setting.steps)

    @cached_property
    def profile(self) -> Profile:
        """Exact inner products, so that every sketch can be taken of the same recording."""
        return ditcache.calibrate(self.model, self.generate, len(self.calibration), exact=True)

    @cached_property
    def sketched(self) -> Profile:
        """The profile as it is recorded by default."""
        return ditcache.calibrate(self.model, self.generate, len(self.calibration))

    @cached_property
    def uncached(self) -> Tensor:
        """Pictures of the held-out samples."""
        ditcache.remove(self.model)
        return self._pictures(self.batches)

    def psnr(self, plan: Plan) -> np.ndarray:
        """PSNR of each held-out sample under a plan."""
        wanted = self.uncached
        ditcache.apply(self.model, plan)
        ditcache.reset(self.model)
        found = metrics.psnr(self._pictures(self.batches), wanted)
        if fallen := ditcache.summary(self.model).fallbacks:
            raise RuntimeError(f"the plan was not followed: {fallen}")
        return found

    def tuned(self, candidates: int) -> Plan:
        """The plan of `ditcache.tune`."""
        return ditcache.tune(
            self.model,
            self.generate,
            self.sketched,
            speedup=self.setting.speedup,
            candidates=candidates,
        )

    def reduced(self, samples: int | None = None, width: int | None = None) -> Profile:
        """The profile of the first `samples` alone, or through a sketch of `width`."""
        profile, reference = self.profile, self.profile.reference
        if reference is None:
            raise RuntimeError("the sampler's update could not be measured")
        # What the sampler saw, guidance applied: [calls, T, rows * numel].
        y = np.einsum("bt,cbtm->ctm", reference.update.shares, reference.courses.y)
        calls, steps, rows = y.shape[0], y.shape[1], reference.courses.rows
        each = y.reshape(calls, steps, rows, -1).transpose(0, 2, 1, 3)
        each = each.reshape(calls * rows, steps, -1)[:samples]
        numel = len(each) * each.shape[-1]
        if width is not None:
            flat = torch.from_numpy(np.ascontiguousarray(each)).flatten(0, 1)
            thin = [sketch_rows(part, width, len(part)) for part in flat.split(64)]
            each = torch.cat(thin).reshape(*each.shape[:-1], -1).double().numpy()
        gram = np.einsum("nsm,ntm->st", each, each)[None, None] / numel
        own = profile.region(DENOISER)
        assert own is not None
        region = RegionProfile(DENOISER, gram, own.shape, own.dtype)
        return replace(profile, branches=("",), guidance=None, regions=(region,))

    def _pictures(self, batches: list[Batch]) -> Tensor:
        parts = [self.workload.sample(self.model, b, self.setting.steps) for b in batches]
        return torch.cat([self.workload.pictures(p) for p in torch.cat(parts).split(32)])


def variants(bench: Bench) -> Iterator[tuple[str, Make]]:
    """Names and plans of all cells on the calibrated grid."""
    profile, speedup = bench.profile, bench.setting.speedup
    solved = profile.plan(speedup)
    given, region = problem(profile), solved.regions[0]
    own = forecaster_of(region.forecaster)

    def with_(forecaster: EDF, steps: tuple[int, ...] = region.computed, name: str = "") -> Plan:
        candidate = Candidate(steps, name or region.schedule, forecaster, 0.0)
        made = schedule_of(candidate, given.gram, given.x, given.c)
        return replace(solved, regions=(made,), checks=None, expected_error=None)

    yield "solved", lambda: solved
    for count in CANDIDATES:
        yield f"tuned, candidates={count}", lambda c=count: bench.tuned(c)
    for policy in PLAIN:
        yield policy, lambda p=policy: profile.plan(speedup, policy=p)
    for beta in BETAS:
        yield f"beta={beta:g}", lambda b=beta: with_(replace(own, beta=b))
    for k in DEPTHS:
        yield f"K={k}", lambda k=k: with_(replace(own, k=k))
    for ridge in RIDGES:
        yield f"ridge={ridge:g}", lambda r=ridge: with_(replace(own, ridge=r))
    for response in RESPONSES:
        yield f"response={response:g}", lambda r=response: with_(replace(own, response=r))
    n = solved.computed_steps
    for name, steps in standard_schedules(given.gram, given.x, given.c, n).items():
        yield f"schedule={name}", lambda s=steps, m=name: with_(own, s, m)
    for rates in ANSWERS:
        name = ",".join(f"{rate:g}" for rate in rates)
        yield f"answers={name}", lambda r=rates: answered(profile, speedup, r)
    for count in COUNTS:
        yield f"samples={count}", lambda c=count: bench.reduced(samples=c).plan(speedup)
    for width in WIDTHS:
        yield f"sketch={width}", lambda w=width: bench.reduced(width=w).plan(speedup)
    yield "guidance unknown", lambda: _unguided(profile, given.gram).plan(speedup)


def forecaster_of(name: str) -> EDF:
    """The forecaster that a plan names; that of the middle of all where it is not of our kind."""
    found = re.fullmatch(r"edf\(k=(\d+),beta=([\d.e-]+),ridge=([\d.e-]+)\)", name)
    return EDF(int(found[1]), float(found[2]), float(found[3])) if found else EDF(3, 0.45)


def answered(profile: Profile, speedup: float, rates: Sequence[float]) -> Plan:
    """The plan for a model that answers at these rates."""

    def accounts(batch: int, depth: int, c: Array, gram: Array, *_: object) -> Accounts:
        return Accounts(batch, depth, c, gram, rates)

    with mock.patch("ditcache.passes.error_diffusion.Accounts", accounts):
        return profile.plan(speedup)


def transfers(bench: Bench) -> Iterator[tuple[str, Bench, Make]]:
    """Cells on another grid or guidance: planned from this profile, and from their own."""
    setting, speedup = bench.setting, bench.setting.speedup
    other = Bench(replace(setting, steps=OTHER_STEPS))
    yield f"{OTHER_STEPS} steps, own profile", other, lambda: other.profile.plan(speedup)
    yield (
        f"{OTHER_STEPS} steps, transferred",
        other,
        lambda: bench.profile.plan(speedup, timesteps=other.profile.timesteps),
    )
    stronger = Bench(setting, bench.workload.guidance * STRONGER)
    name = f"guidance {stronger.workload.guidance:g}"
    yield f"{name}, own profile", stronger, lambda: stronger.profile.plan(speedup)
    yield (
        f"{name}, transferred",
        stronger,
        lambda: bench.profile.plan(speedup, guidance=stronger.workload.guidance),
    )


def _unguided(profile: Profile, guided: np.ndarray) -> Profile:
    """The same profile with the branches' own errors added up instead of the guided output's."""
    own = profile.region(DENOISER)
    assert own is not None
    gram = guided_gram(own.gram, None)[None, None]
    if gram.shape[2:] != guided.shape:
        raise RuntimeError("the profile's grid and its Gram matrix do not agree")
    return replace(profile, branches=("",), guidance=None, regions=(replace(own, gram=gram),))


def run(setting: Setting, ledger: Ledger, console: Console, only: str, *, transfer: bool) -> None:
    """Measure the missing cells whose name holds `only`; `transfer`: on other grids, too."""
    bench = Bench(setting)

    def measure(name: str, where: Bench, make: Make) -> None:
        if name in ledger or only not in name:
            return
        plan = make()
        found = where.psnr(plan)
        region = plan.regions[0]
        spread = metrics.spread(found).as_dict()
        about = {"forecaster": region.forecaster, "schedule": region.schedule}
        about |= {"computed_steps": plan.computed_steps, "expected_error": plan.expected_error}
        ledger.put(name, {"psnr": spread, "each": np.round(found, 3).tolist(), **about})
        console.print(
            f"{name:34s} {spread['mean']:6.2f}  median {spread['median']:6.2f}  "
            f"p5 {spread['p5']:6.2f}  {region.forecaster}"
        )

    for name, make in variants(bench):
        measure(name, bench, make)
    if transfer:
        for name, where, make in transfers(bench):
            measure(name, where, make)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse options and run."""
    parser = Parser("bench.ablate", __doc__)
    parser.add_argument("--model", choices=list(MODELS), required=True)
    parser.add_argument("--speedup", type=factor, default=5.0)
    parser.add_argument("--n", type=whole, default=32, help="held-out samples")
    parser.add_argument("--calibration", type=whole, default=16, help="calibration samples")
    parser.add_argument("--batch", type=whole, default=16)
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED, help="of the first judged one")
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--no-transfer", action="store_true", help="this grid and guidance alone")
    parser.out()
    parser.add_argument("--work", type=folder, default=Path("out/ablate"), help="resumable state")
    args = parser.parse_args(arguments)
    plain_messages()
    setting = Setting(
        args.model, args.speedup, args.n, args.calibration, args.batch, seed=args.seed
    )
    key = hashlib.sha256(repr(setting).encode()).hexdigest()[:16]
    ledger = Ledger(args.work / f"{args.model}.jsonl", key)
    console = Console(width=120)
    run(setting, ledger, console, args.only, transfer=not args.no_transfer)
    if args.out:
        cells = [{k: v for k, v in c.items() if k != "each"} for c in ledger.records.values()]
        document = {"environment": environment("bench.ablate"), "setting": asdict(setting)}
        write_json(args.out, document | {"cells": cells})


if __name__ == "__main__":
    main()
