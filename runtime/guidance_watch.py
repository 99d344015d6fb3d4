"""The guidance scale of a generation under way, and whether a plan suits it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..passes.guidance import farthest
from ..passes.measured_solver import SMALLEST_DIFFERENCE
from ..passes.plan_format import Plan
from .recorder import leading
from .seen import Glimpse, entries_of, glimpse

HALVES = 2
LARGEST_RESIDUAL = 0.02  # of the first step's update, of what the fit may leave
SLACK = 1.025
"""A scale that is measured is off by a little."""


@dataclass
class GuidanceWatch:
    """Measures the scale from the first step to the second, which every sampler takes like Euler.

    From x_1 = a x_0 + g_0 y_0 + g_1 y_1 the scale is g_0 / (g_0 + g_1) of the conditional branch,
    fitted on a few hundred entries. `scale` is None before the second step, and where the calls
    were not two branches or the latents do not follow from them.
    """

    scale: float | None = None
    latents: Glimpse | None = None
    shape: torch.Size | None = None  # of the first step's latents
    halved: bool = False  # whether their halves are the two branches
    outputs: list[Glimpse] = field(default_factory=list[Glimpse])

    def saw(self, latents: Tensor | None, output: Tensor | None) -> None:
        """Take in a call of the first step. Waits for the device."""
        if latents is None or output is None:
            return
        x, y = leading(latents, output.shape), leading(output, latents.shape)
        if x.shape != y.shape:
            return
        self.shape = latents.shape
        self.halved = len(x) % HALVES == 0 and torch.equal(*x.chunk(HALVES))
        self.latents = glimpse(x.chunk(HALVES)[0] if self.halved else x)
        self.outputs += [glimpse(part) for part in (y.chunk(HALVES) if self.halved else (y,))]

    def measure(self, latents: Tensor | None, shape: tuple[int, ...] | None) -> float | None:
        """The scale, from the latents of the second step; `shape` is the output's."""
        seen = self.second(latents, shape)
        return None if seen is None else self.fit(seen.to("cpu", torch.float32))

    def second(self, latents: Tensor | None, shape: tuple[int, ...] | None) -> Tensor | None:
        """What of the second step's latents `fit` needs, 1-D where they lie; None if no scale."""
        fits = latents is not None and latents.shape == self.shape and shape is not None
        if self.latents is None or not fits or len(self.outputs) != HALVES:
            self.latents, self.outputs = None, []
            return None
        assert latents is not None
        assert shape is not None
        x = leading(latents, shape)
        return entries_of(x.chunk(HALVES)[0] if self.halved else x)

    def fit(self, second: Tensor) -> float | None:
        """The scale, from what `second` gave, on the host."""
        before, outputs, self.latents, self.outputs = self.latents, self.outputs, None, []
        after: Glimpse = second.to(torch.float32).numpy()
        if before is None or any(len(value) != len(before) for value in (after, *outputs)):
            return None
        self.scale = _fit(before, outputs, after)
        return self.scale


def suits(plan: Plan, scale: float | None) -> bool:
    """Whether a plan may be used at a guidance scale."""
    if scale is None or plan.guidance is None:
        return True
    return scale <= SLACK * farthest(max(1.0, plan.guidance))


def octave(scale: float | None) -> int | None:
    """Scales of one octave are recorded together: beyond, a plan does not suit."""
    return None if scale is None else round(math.log2(max(1.0, scale)))


def _fit(before: Glimpse, outputs: list[Glimpse], after: Glimpse) -> float | None:
    table = np.stack([before, *outputs], axis=1).astype(np.float64)
    target, moved = after.astype(np.float64), np.linalg.norm(after - before)
    size = np.linalg.norm(table, axis=0)
    apart = np.linalg.norm(table[:, 1] - table[:, 2])
    if not (np.isfinite(table).all() and np.isfinite(target).all() and (size > 0).all()):
        return None
    if not apart > SMALLEST_DIFFERENCE * size[1]:
        return None
    found = np.linalg.lstsq(table / size, target, rcond=None)[0] / size
    left, total = np.linalg.norm(target - table @ found), found[1] + found[2]
    if not left <= LARGEST_RESIDUAL * moved or total == 0.0:
        return None
    share = float(found[1] / total)
    return share if share >= 0.5 else 1.0 - share  # the conditional branch has the larger one
