"""L2P: the denoiser's output is forecast with weights fitted for each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..forecasters import EDF
from ..plan_format import RegionSchedule
from .base import DENOISER, Policy, Subject, every, option


@dataclass(frozen=True)
class L2P(Policy):
    """Least squares of each skipped step on the last `history` computed ones, at fixed intervals.

    After Beyond Fixed Formulas: Data-Driven Linear Predictor for Efficient Diffusion Models (arXiv
    2604.26365), which trains the weights by gradient descent on recorded trajectories; on the
    profile's inner products the same objective has a closed form. It is `edf` without error
    diffusion and without a choice of schedule; like it, it has a small ridge (1e-4 of the mean
    power) towards Lagrange's polynomial, as outputs smooth in time are nearly dependent.
    """

    name: ClassVar[str] = "l2p"
    source: ClassVar[str] = "arXiv 2604.26365"
    measured: ClassVar[bool] = True

    interval: int = option(5, 1)
    first: int = option(3, 1)
    history: int = option(3, 1)

    def schedules(self, on: Subject) -> Sequence[RegionSchedule]:
        """The denoiser, with fitted rows."""
        computed = every(on.steps, self.interval, self.first)
        fitted = EDF(min(self.history, 4), beta=0.0, response=0.0)
        gram = on.gram(DENOISER)
        return [on.schedule(DENOISER, computed, fitted, name="interval", gram=gram)]
