"""The paired comparison of one model: every method on the same prompts, seeds and budgets."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ditcache
import numpy as np
import torch
from ditcache import Profile
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import metrics
from .digit_judge import right_class
from .quality import Pictures, distribution, fidelity
from .workload import (
    CALIBRATION_SEED,
    EVALUATION_SEED,
    SECOND_SEED,
    WORKLOADS,
    Batch,
)

FEWER = "fewer-steps"
UNCACHED = "uncached"
METHODS = (
    "edf",
    "taylor-1",
    "taylor-2",
    "lagrange-1",
    "lagrange-2",
    "taylor-2-best",
    "lagrange-2-best",
    "reuse",
    FEWER,
)
BUDGETS = (2.0, 3.0, 5.0, 7.0)
Tick = Callable[[], None]


@dataclass(frozen=True)
class Setting:
    """What is compared: `n` held-out samples, plans from `calibration` others.

    Both are topped up to whole batches, so that no second shape is compiled. `inner` compiles the
    parts for the comparison, each of `exact` those for a check of the exact tier.
    """

    model: str
    n: int = 128
    batch: int = 16
    calibration: int = 16
    steps: int = 50
    inner: str = "eager"
    exact: tuple[str, ...] = ("eager", "inductor")
    methods: tuple[str, ...] = METHODS
    budgets: tuple[float, ...] = BUDGETS


@dataclass
class Study:
    """Samples, plans and finished cells of one setting.

    Finished cells are lines of `lines`, and uncached samples lie beside it; both carry a key of
    the setting and the weights, so that a run goes on where it stopped, and never with numbers of
    another model.
    """

    setting: Setting
    lines: Path
    tick: Tick
    cells: dict[str, dict[str, Any]] = field(default_factory=dict[str, "dict[str, Any]"])

    def __post_init__(self) -> None:
        setting = self.setting
        self.workload = WORKLOADS[setting.model]()
        self.key = _key(setting, self.workload.denoiser)
        # Code that was compiled for another copy of this model in this process is not ours.
        torch.compiler.reset()
        self.model: Any = torch.compile(
            self.workload.denoiser,
            backend="ditcache",
            options={"inner": setting.inner, "remember": False},
        )
        make = self.workload.batches
        self.held_out = make(setting.n, setting.batch, seed=EVALUATION_SEED)
        self.second = make(setting.n, setting.batch, seed=SECOND_SEED)
        self.calibration = make(
            setting.calibration, setting.batch, seed=CALIBRATION_SEED, calibration=True
        )
        self.captions = [c for b in self.held_out for c in self.workload.captions(b)]
        if self.lines.exists():
            for line in self.lines.read_text().splitlines():
                cell = json.loads(line)
                if cell.pop("key") == self.key:
                    self.cells[cell["name"]] = cell

    def run(self) -> None:
        """Measure what is missing."""
        # The first call compiles; only then is there something to switch off.
        self.workload.sample(self.model, self.calibration[0], 2)
        ditcache.remove(self.model)
        first = self._pictures(self._uncached("first", self.held_out))
        second = self._pictures(self._uncached("second", self.second))
        references = {UNCACHED: first, "other_seeds": second}
        self._put(UNCACHED, lambda: self._judge(first, None, {"other_seeds": second}))
        # An own list: batches of the second set name the same captions in the same order.
        self._put(f"{UNCACHED} other seeds", lambda: self._judge(second, None, {UNCACHED: first}))
        profile: Profile | None = None
        for budget in self.setting.budgets:
            for method in self.setting.methods:
                name = f"{method} {budget:g}x"
                if name in self.cells:
                    self.tick()
                    continue
                if profile is None:
                    profile = self._calibrate()
                self._put(
                    name, lambda m=method, b=budget, p=profile: self._cell(m, b, p, references)
                )

    def _cell(
        self, method: str, budget: float, profile: Profile, references: dict[str, Pictures]
    ) -> dict[str, Any]:
        steps = self.setting.steps
        about: dict[str, Any] = {"method": method, "budget": budget}
        if method == FEWER:
            ditcache.remove(self.model)
            steps = int(steps / budget)
            about["computed_steps"] = steps
        else:
            plan = profile.plan(speedup=budget, policy=method)
            ditcache.apply(self.model, plan)
            region = plan.regions[0]
            about |= {
                "computed_steps": plan.computed_steps,
                "schedule": region.schedule,
                "forecaster": region.forecaster,
                "expected_error": plan.expected_error,
            }
        ditcache.reset(self.model)
        started = time.perf_counter()
        made = self._pictures(self._sample(self.held_out, steps))
        about["seconds"] = round(time.perf_counter() - started, 1)
        said = ditcache.summary(self.model)
        if said.fallbacks:
            raise RuntimeError(f"{method} fell back to computing: {said.fallbacks}")
        about["macs_reduction"] = round(said.macs_uncached / said.macs, 4)
        if method == FEWER:
            about["macs_reduction"] = round(self.setting.steps / steps, 4)
        return about | self._judge(made, references[UNCACHED], references)

    def _judge(
        self, made: Pictures, uncached: Pictures | None, references: dict[str, Pictures]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {"n": len(made.images)}
        if uncached is not None:
            found |= fidelity(made, uncached)
            each = metrics.psnr(made.images, uncached.images)
            found["psnr_each"] = np.round(each, 3).tolist()
        found |= distribution(
            made, self.workload.real(), references, self.captions, space=self.workload.space
        )
        if self.setting.model == "dit-digits":
            right = right_class(made.images, [int(c) for c in self.captions])
            found["class_accuracy"] = metrics.spread(right).as_dict()
        return found

    def _calibrate(self) -> Profile:
        batches, steps = self.calibration, self.setting.steps
        return ditcache.calibrate(
            self.model,
            lambda i: self.workload.sample(self.model, batches[i], steps),
            len(batches),
        )

    def _uncached(self, name: str, batches: list[Batch]) -> Tensor:
        path = self.lines.with_name(f"{self.lines.stem}.{name}.{self.key}.safetensors")
        if path.exists():
            return load_file(path)["latents"]
        latents = self._sample(batches, self.setting.steps)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"latents": latents.contiguous()}, path)
        return latents

    def _sample(self, batches: list[Batch], steps: int) -> Tensor:
        return torch.cat([self.workload.sample(self.model, b, steps) for b in batches])

    def _pictures(self, latents: Tensor) -> Pictures:
        images = torch.cat([self.workload.pictures(part) for part in latents.split(32)])
        return Pictures(images, self.workload.embed(images))

    def _put(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        if name not in self.cells:
            cell = {"name": name} | measure()
            self.lines.parent.mkdir(parents=True, exist_ok=True)
            with self.lines.open("a") as file:
                file.write(json.dumps({"key": self.key} | cell) + "\n")
            self.cells[name] = cell
        self.tick()


def _key(setting: Setting, model: torch.nn.Module) -> str:
    """Name setting and weights in a few characters; which methods and budgets run is left out."""
    kept = {k: v for k, v in asdict(setting).items() if k not in ("methods", "budgets", "exact")}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for parameter in model.parameters():
        digest.update(parameter.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
