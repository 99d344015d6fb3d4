"""Recording: from the outputs of generations to a profile, and to what a replay is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..passes.plan_parts import DENOISER
from .sketch import elements, rows_of, sketch_rows
from .track import Moment

SKETCH_WIDTH = 512
"""Numbers kept of each sample's output at a step."""
LATENTS = "latents"


@dataclass
class Recording:
    """One generation: a sketch of each region's output at each (step, branch).

    A batch is sketched sample by sample, of the output the part that the sampler uses; of that and
    of the latents a few `single` elements are kept besides. Under a plan (a replay) the latents of
    every step are kept, and outputs where they were computed.
    """

    width: int
    timesteps: list[float] = field(default_factory=list[float])
    branches: list[str] = field(default_factory=list[str])
    # region -> (step, branch) -> sketch, numel
    seen: dict[str, dict[tuple[int, str], Tensor]] = field(
        default_factory=dict[str, "dict[tuple[int, str], Tensor]"]
    )
    single: dict[str, dict[tuple[int, str], Tensor]] = field(
        default_factory=dict[str, "dict[tuple[int, str], Tensor]"]
    )
    numel: dict[str, int] = field(default_factory=dict[str, int])
    shape: dict[str, tuple[int, ...]] = field(default_factory=dict[str, "tuple[int, ...]"])
    dtype: dict[str, str] = field(default_factory=dict[str, str])
    batch: int | None = None  # of the latents
    rows: int = 0  # samples in the batch that were sketched apart
    used: tuple[int, ...] = ()  # shape of the denoiser's output that the sampler uses
    apart: dict[str, int] = field(default_factory=dict[str, int])  # the same, by region
    broken: str | None = None

    def add(
        self,
        moment: Moment,
        latents: Tensor | None,
        values: Mapping[str, Tensor],
        main: Tensor | None = None,
    ) -> None:
        """Take in one call: the latents that went in and the outputs of what was computed.

        `main` is the denoiser's output that the sampler uses, where it gives several.
        """
        if moment.step == len(self.timesteps):
            self.timesteps.append(moment.timestep)
        elif moment.step != len(self.timesteps) - 1:
            self.broken = f"step {moment.step} came after {len(self.timesteps)} recorded ones"
            return
        batch = None if latents is None or latents.dim() == 0 else latents.shape[0]
        if moment.branch not in self.branches:
            if self.branches and batch != self.batch:
                return  # an extra call, as of skip-layer guidance: it has no part in the profile
            self.branches.append(moment.branch)
            self.batch = batch
        if DENOISER in values:
            used = values[DENOISER] if main is None else main
            self.rows = self.rows or rows_of(used)  # before any other region is sketched by rows
            self.used = tuple(used.shape)
            made = used if latents is None else leading(used, latents.shape)
            self._put(DENOISER, moment, made, tuple(values[DENOISER].shape))
        for region, value in values.items():
            if region != DENOISER:
                self._put(region, moment, value, tuple(value.shape))
        if latents is not None and DENOISER in self.shape:
            part = leading(latents, self.used)
            if part.numel() == self.numel[DENOISER]:
                self._put(LATENTS, moment, part, tuple(part.shape))

    def _put(self, region: str, moment: Moment, value: Tensor, shape: tuple[int, ...]) -> None:
        if self.shape.setdefault(region, shape) != shape:
            self.broken = f"{region} changed shape from {self.shape[region]} to {shape}"
            return
        self.numel[region] = value.numel()
        self.dtype[region] = str(value.dtype).removeprefix("torch.")
        store = self.seen.setdefault(region, {})
        rows = self.rows if self.rows and value.dim() > 1 and len(value) == self.rows else 1
        self.apart[region] = rows
        store[moment.step, moment.branch] = sketch_rows(value, self.width, rows)
        if region in (LATENTS, DENOISER):
            self.single.setdefault(region, {})[moment.step, moment.branch] = elements(value, rows)

    def settle(self) -> None:
        """Leave out branches that were not called at every step: guidance within an interval.

        Their outputs cannot be compared over all steps; the plan is made for the others.
        """
        called = {place for table in self.seen.values() for place in table}
        steps = range(len(self.timesteps))
        whole = [b for b in self.branches if all((step, b) in called for step in steps)]
        self.branches = whole or self.branches

    def table(self, region: str, *, single: bool = False) -> np.ndarray | None:
        """float64 [B, T, m] of sketches, or of `single` elements; None if a call is missing."""
        store = (self.single if single else self.seen).get(region, {})
        steps, rows = range(len(self.timesteps)), []
        for branch in self.branches:
            row = [store.get((step, branch)) for step in steps]
            if any(v is None for v in row):
                return None
            rows.append([v.cpu().numpy().astype(np.float64) for v in row if v is not None])
        return np.asarray(rows)

    def partial(self, region: str) -> np.ndarray:
        """float64 [B, T, m] of sketches, NaN where a (step, branch) was not computed."""
        store = self.seen.get(region, {})
        size = max((z.numel() for z in store.values()), default=0)
        made = np.full((len(self.branches), len(self.timesteps), size), np.nan)
        for (step, branch), z in store.items():
            if branch not in self.branches:
                continue
            made[self.branches.index(branch), step] = z.cpu().numpy()
        return made

    @property
    def finite(self) -> bool:
        """Whether all that was recorded is finite."""
        return all(bool(z.isfinite().all()) for table in self.seen.values() for z in table.values())

    @property
    def grid(self) -> tuple[float, ...]:
        """The timesteps seen, rounded so that equal grids compare equal."""
        return tuple(float(f"{t:.6g}") for t in self.timesteps)


def leading(value: Tensor, like: Sequence[int]) -> Tensor:
    """The leading part of `value` that is as large as `like`, where they differ in one dimension.

    A first frame or a mask is appended to the latents' channels, a learned variance to the
    output's: the part that stands for the other comes first.
    """
    if value.dim() != len(like):
        return value
    unequal = [i for i in range(1, value.dim()) if value.shape[i] != like[i]]
    if len(unequal) != 1 or value.shape[0] != like[0]:
        return value
    dim = unequal[0]
    return value.narrow(dim, 0, like[dim]) if value.shape[dim] > like[dim] else value
