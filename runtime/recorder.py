"""Recording: from the outputs of full generations to a profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..passes.profile import Profile, ProfileError, RegionProfile
from ..passes.solver_weights import MeasuredSolver, measured
from .clock import Moment
from .sketch import sketch

SKETCH_WIDTH = 512
DENOISER = "denoiser"
LATENTS = "latents"


@dataclass
class Recording:
    """One generation: a sketch of each region's output at each (step, branch)."""

    width: int
    timesteps: list[float] = field(default_factory=list[float])
    branches: list[str] = field(default_factory=list[str])
    # region -> (step, branch) -> sketch, numel
    seen: dict[str, dict[tuple[int, str], Tensor]] = field(
        default_factory=dict[str, "dict[tuple[int, str], Tensor]"]
    )
    numel: dict[str, int] = field(default_factory=dict[str, int])
    shape: dict[str, tuple[int, ...]] = field(default_factory=dict[str, "tuple[int, ...]"])
    dtype: dict[str, str] = field(default_factory=dict[str, str])
    broken: str | None = None

    def add(self, moment: Moment, latents: Tensor | None, values: Mapping[str, Tensor]) -> None:
        """Take in one computed call: the latents that went in and the regions' outputs."""
        if moment.step == len(self.timesteps):
            self.timesteps.append(moment.timestep)
        elif moment.step != len(self.timesteps) - 1:
            self.broken = f"step {moment.step} came after {len(self.timesteps)} recorded ones"
            return
        if moment.branch not in self.branches:
            self.branches.append(moment.branch)
        for region, value in values.items():
            self._put(region, moment, value)
        main = values.get(DENOISER)
        if latents is not None and main is not None and latents.numel() == main.numel():
            self._put(LATENTS, moment, latents)

    def _put(self, region: str, moment: Moment, value: Tensor) -> None:
        shape = tuple(value.shape)
        if self.shape.setdefault(region, shape) != shape:
            self.broken = f"{region} changed shape from {self.shape[region]} to {shape}"
            return
        self.numel[region] = value.numel()
        self.dtype[region] = str(value.dtype).removeprefix("torch.")
        store = self.seen.setdefault(region, {})
        store[moment.step, moment.branch] = sketch(value, self.width)

    def table(self, region: str) -> np.ndarray | None:
        """float64 [B, T, m] of sketches, None if a (step, branch) is missing."""
        store = self.seen.get(region, {})
        steps, rows = range(len(self.timesteps)), []
        for branch in self.branches:
            row = [store.get((step, branch)) for step in steps]
            if any(v is None for v in row):
                return None
            rows.append([v.cpu().numpy().astype(np.float64) for v in row if v is not None])
        return np.asarray(rows)

    @property
    def finite(self) -> bool:
        """Whether all that was recorded is finite."""
        return all(bool(z.isfinite().all()) for table in self.seen.values() for z in table.values())

    @property
    def grid(self) -> tuple[float, ...]:
        """The timesteps seen, rounded so that equal grids compare equal."""
        return tuple(float(f"{t:.6g}") for t in self.timesteps)


def make_profile(
    recordings: list[Recording],
    signature: str,
    *,
    guidance: float | None = None,
    macs: int | None = None,
) -> Profile:
    """Average recordings of whole generations over one grid into a profile.

    The sampler's weights and the guidance scale are measured from the recorded latents where the
    sampler's update is linear in them; `guidance` overrides. Raises ProfileError when recordings
    are missing, broken, or of different grids, shapes or branches.
    """
    if not recordings:
        raise ProfileError("no generation was recorded: did generate() call the compiled model?")
    first = recordings[0]
    for i, rec in enumerate(recordings):
        if rec.broken:
            raise ProfileError(f"generation {i} cannot be used: {rec.broken}")
        if not rec.finite:
            raise ProfileError(
                f"generation {i} cannot be used: the model's outputs hold NaN or infinity; does it "
                "produce finite images without a cache?"
            )
        same = (rec.grid, rec.branches, rec.shape) == (first.grid, first.branches, first.shape)
        if not same:
            raise ProfileError(
                f"generation {i} differs from generation 0: {len(rec.grid)} steps, branches "
                f"{rec.branches}, shapes {rec.shape}; expected {len(first.grid)} steps, "
                f"{first.branches}, {first.shape}. Calibrate with equal shapes and step counts."
            )
    regions: list[RegionProfile] = []
    for name in first.seen:
        if name == LATENTS:
            continue
        grams: list[np.ndarray] = []
        for rec in recordings:
            z = rec.table(name)
            if z is None:
                raise ProfileError(
                    f"region {name!r}: a guidance branch was not called at every step, so its "
                    "outputs cannot be compared; calibrate with guidance on at all steps"
                )
            grams.append(np.einsum("asm,btm->abst", z, z) / rec.numel[name])
        gram = np.mean(grams, axis=0)
        regions.append(RegionProfile(name, gram, first.shape[name], first.dtype[name]))
    solver = _measure(recordings)
    return Profile(
        signature=signature,
        timesteps=tuple(first.timesteps),
        branches=tuple(first.branches),
        samples=len(recordings),
        regions=tuple(regions),
        sketch=first.width,
        guidance=guidance if guidance is not None else (solver.guidance if solver else None),
        solver=solver.weights if solver else None,
        macs=macs,
    )


def _measure(recordings: list[Recording]) -> MeasuredSolver | None:
    """What the latents and outputs say about the sampler, None where they were not comparable."""
    xs: list[np.ndarray] = []
    ys: list[np.ndarray] = []
    for rec in recordings:
        x, y = rec.table(LATENTS), rec.table(DENOISER)
        if x is None or y is None:
            return None
        xs.append(x[0])
        ys.append(y)
    return measured(np.asarray(xs), np.asarray(ys), recordings[0].timesteps)
