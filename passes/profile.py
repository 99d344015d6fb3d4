"""The profile: what calibration generations leave behind, enough to make any plan.

Of every region only inner products between steps are kept: for 50 steps and two branches some
tens of kilobytes, whatever the size of the model. Stored as safetensors, never pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import profile_file
from .clamp import Clamp
from .clipped_run import ClippedRun
from .frontier import Frontier
from .outline import Outline
from .plan_format import Plan
from .plan_from_profile import make_frontier, make_plan
from .profile_checks import check
from .profile_file import AGAIN, Array, Numbers, ProfileError
from .refit import Reference


@dataclass(frozen=True, eq=False)
class RegionProfile:
    """One region's outputs over one denoising grid.

    `gram` float64 [B, B, T, T]: mean over samples of <y_{b,s}, y_{b',t}> / numel, B the number of
    CFG branches. `shape` and `dtype` are those of one live-out as recorded.
    """

    region: str
    gram: Array
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Profile:
    """Measurements of one model on one grid of T timesteps; validated when made.

    `signature` names the model's graph. `timesteps` are as the model saw them, strictly
    monotone: falling in most models, rising where 0 is noise. `branches` names the CFG branches,
    `("",)` if there is one. `samples` counts the
    generations. `sketch` is the width of the count-sketch that the inner products were taken
    through, 0 if they are exact. `guidance` is the scale of the conditional branch, None if unknown
    or if the branches are batched. `solver` [T] are the sampler's weights, None to take them from
    the grid. `macs` counts the multiply-adds of a full step over all branches. `reference` are the
    recorded generations themselves, in sketches, where the sampler's update could be measured: what
    `ditcache.tune` compares replays with. It is not saved. `outline` says which regions the model
    has, for the policies that cache more than its output.

    `power` is the mean square of the last latents, for models of whose outputs c' G c does not say
    how large the sample is (those that predict the data or the noise). `adds_up` is False where the
    recorded latents show a sampler that does not add the outputs up with fixed weights: one that
    draws noise, or clips; no error is predicted then. `draws_noise` tells the first from others:
    nothing is solved, as every step brings what no forecast can know. `clipped` are elements of the
    recorded generations, where a sampler that clips could be told from them: plans and their errors
    then come from walking through it.

    Raises `ProfileError` if any of it is unsound.
    """

    signature: str
    timesteps: tuple[float, ...]
    branches: tuple[str, ...]
    samples: int
    regions: tuple[RegionProfile, ...]
    sketch: int = 0
    guidance: float | None = None
    solver: Array | None = None
    macs: int | None = None
    reference: Reference | None = field(default=None, repr=False)
    outline: Outline | None = None
    power: float | None = None
    adds_up: bool = True
    draws_noise: bool = False
    clipped: ClippedRun | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check(self)

    def plan(
        self,
        speedup: float | None = None,
        *,
        computed_steps: int | None = None,
        max_error: float | None = None,
        policy: str = "edf",
        timesteps: Sequence[float] | None = None,
        scheduler: Any = None,
        guidance: float | None = None,
        **options: Any,
    ) -> Plan:
        """Make the best plan within a budget, or the plan of a published policy.

        Exactly one of `speedup` (at least that reduction of computed steps), `computed_steps` and
        `max_error` (relative rms error of the final sample). `policy` is one of
        `portfolio.POLICIES`, or one of the zoo (`passes.policies`), which takes `options` of its
        own in place of a budget: `policy="taylorseer", order=2, interval=4`. `timesteps` plans for
        another grid of the same kind; `scheduler` (any deterministic diffusers-like one) and
        `guidance` (at most twice the calibrated one) override what was measured.

        The plan is for the region "denoiser" if that was recorded, else for every region. Raises
        `PlanError` if the budget or the grid is out of reach.
        """
        return make_plan(
            self,
            speedup=speedup,
            computed_steps=computed_steps,
            max_error=max_error,
            policy=policy,
            timesteps=timesteps,
            scheduler=scheduler,
            guidance=guidance,
            options=options,
        )

    def frontier(self, policy: str = "edf") -> Frontier:
        """What every number of computed steps costs in expected error, fewest first.

        `print` it for a table, `.plot(path)` for a picture. A survey: `plan` searches longer and
        does somewhat better at each budget.
        """
        return make_frontier(self, policy)

    @property
    def tells_errors(self) -> bool:
        """Whether the sampler is known well enough to predict what a plan costs."""
        return self.adds_up or self.clipped is not None

    def region(self, name: str) -> RegionProfile | None:
        """Return the region of that name, or None."""
        return next((region for region in self.regions if region.region == name), None)

    def drift(self, region: str) -> Array:
        """[T-1] relative change |y_{t+1} - y_t| / |y_t| of a region, rms over branches and samples.

        Raises `ProfileError` if the region was not recorded.
        """
        found = self.region(region)
        if found is None:
            known = ", ".join(r.region for r in self.regions)
            raise ProfileError(f"region {region!r} was not recorded; recorded are {known}")
        whole = np.einsum("bbst->st", found.gram)
        power = np.diagonal(whole)
        change = power[1:] + power[:-1] - 2 * np.diagonal((whole + whole.T) / 2, 1)
        floor = np.finfo(np.float64).tiny
        return np.sqrt(np.maximum(change, 0.0) / np.maximum(power[:-1], floor))

    def merged(self, other: Profile) -> Profile:
        """Combine two sets of generations: the mean, weighted by their samples.

        Raises `ProfileError` unless model, grid, branches, regions and sketch agree. Guidance and
        solver weights that differ between the two become unknown, unless they reckon with the
        model's answer (`power`): that varies from sample to sample, and the mean counts.
        """
        for name in ("signature", "branches", "sketch"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ProfileError(f"cannot merge profiles: {name} is {mine!r} and {theirs!r}")
        if self.timesteps != other.timesteps:
            raise ProfileError("cannot merge profiles: they were taken on different timesteps")
        mine, theirs = ([(r.region, r.shape[1:]) for r in p.regions] for p in (self, other))
        if mine != theirs:
            raise ProfileError(f"cannot merge profiles of regions {mine} and {theirs}")
        total = self.samples + other.samples
        share = self.samples / total
        regions = tuple(
            replace(a, gram=share * a.gram + (1 - share) * b.gram)
            for a, b in zip(self.regions, other.regions, strict=True)
        )
        guidance, solver, power = None, None, None
        if self.power is not None and other.power is not None:
            power = share * self.power + (1 - share) * other.power
        one, two = self.guidance, other.guidance
        if one is not None and two is not None and abs(one - two) <= 0.02 * max(1.0, abs(one)):
            guidance = share * one + (1 - share) * two
        if self.solver is not None and other.solver is not None:
            size = float(np.abs(self.solver).max())
            if np.allclose(self.solver, other.solver, rtol=0.0, atol=0.02 * size):
                solver = share * self.solver + (1 - share) * other.solver
            elif power is not None:
                even = share * _even(self.solver) + (1 - share) * _even(other.solver)
                sizes = (np.mean(np.abs(c)) for c in (self.solver, other.solver))
                solver = even * float(np.dot((share, 1 - share), tuple(sizes)))
        clipped = None
        if self.clipped is not None and other.clipped is not None:
            clipped = self.clipped.merged(other.clipped, share)
        return replace(
            self,
            samples=total,
            regions=regions,
            guidance=guidance,
            solver=solver,
            reference=None,
            power=power,
            adds_up=self.adds_up and other.adds_up,
            draws_noise=self.draws_noise or other.draws_noise,
            clipped=clipped,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to `path` (safetensors with JSON metadata), replacing it as a whole."""
        tensors: dict[str, Numbers] = {
            f"gram.{i}": np.ascontiguousarray(r.gram) for i, r in enumerate(self.regions)
        }
        if self.solver is not None:
            tensors["solver"] = np.ascontiguousarray(self.solver)
        if (run := self.clipped) is not None:
            for name, part in (("clamp", run.clamp.rows), ("answer", run.answer)):
                tensors[f"clipped.{name}"] = np.ascontiguousarray(part)
            for name, part in (("x", run.x), ("y", run.y)):
                tensors[f"clipped.{name}"] = np.ascontiguousarray(part)
        document = {
            "signature": self.signature,
            "timesteps": self.timesteps,
            "branches": self.branches,
            "samples": self.samples,
            "sketch": self.sketch,
            "guidance": self.guidance,
            "macs": self.macs,
            "power": self.power,
            "adds_up": self.adds_up,
            "draws_noise": self.draws_noise,
            "outline": self.outline.to_json() if self.outline is not None else None,
            "regions": [
                {"region": r.region, "shape": r.shape, "dtype": r.dtype} for r in self.regions
            ],
        }
        profile_file.write(path, document, tensors)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Profile:
        """Read a profile; `ProfileError` if the file is not a sound one of this version."""
        document, tensors = profile_file.read(path)
        try:
            return _build(json.loads(document), tensors)
        except ProfileError as error:
            raise ProfileError(f"{path}: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise ProfileError(f"{path}: incomplete ({error!r}); {AGAIN}") from None


def _even(c: Array) -> Array:
    return c / np.mean(np.abs(c))


def _clipped(tensors: Mapping[str, Any]) -> ClippedRun | None:
    parts = [tensors.get(f"clipped.{name}") for name in ("clamp", "x", "y", "answer")]
    if any(part is None for part in parts):
        return None
    rows, x, y, answer = (np.asarray(part) for part in parts)
    return ClippedRun(Clamp(rows), x, y, answer)


def _build(document: dict[str, Any], tensors: Mapping[str, Array]) -> Profile:
    regions = tuple(
        RegionProfile(
            region=str(entry["region"]),
            gram=tensors[f"gram.{i}"],
            shape=tuple(int(n) for n in entry["shape"]),
            dtype=str(entry["dtype"]),
        )
        for i, entry in enumerate(document["regions"])
    )
    return Profile(
        signature=str(document["signature"]),
        timesteps=tuple(float(t) for t in document["timesteps"]),
        branches=tuple(str(b) for b in document["branches"]),
        samples=int(document["samples"]),
        regions=regions,
        sketch=int(document["sketch"]),
        guidance=document["guidance"],
        solver=tensors.get("solver"),
        macs=document["macs"],
        outline=Outline.from_json(document.get("outline")),
        power=document.get("power"),
        adds_up=bool(document.get("adds_up", True)),
        draws_noise=bool(document.get("draws_noise", False)),
        clipped=_clipped(tensors),
    )
