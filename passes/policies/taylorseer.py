"""TaylorSeer: branches, or the whole output, are forecast by a Taylor series in the step index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..forecasters import Taylor
from ..plan_format import PlanError, RegionSchedule
from .base import BRANCHES, DENOISER, Policy, Subject, every, option

LEVELS = {"layer": BRANCHES, "output": DENOISER}


@dataclass(frozen=True)
class TaylorSeer(Policy):
    """Compute `first` steps and every `interval`-th after them, forecast the others.

    From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers (arXiv 2503.06923).
    `order` 0 to 3; the derivatives are backward differences of as many computed steps as there are.
    `level` "layer" forecasts every attention and MLP (the paper), "output" the denoiser's output.
    """

    name: ClassVar[str] = "taylorseer"
    source: ClassVar[str] = "arXiv 2503.06923"

    order: int = option(2, 0)
    interval: int = option(5, 1)
    first: int = option(3, 1)
    level: str = "layer"

    def schedules(self, on: Subject) -> Sequence[RegionSchedule]:
        """One schedule for all regions of the level."""
        if self.order > 3:
            raise PlanError(f"policy 'taylorseer': order must be 0 to 3, got {self.order}")
        if self.level not in LEVELS:
            raise PlanError(f"policy 'taylorseer': level is {self.level!r}, not layer or output")
        if self.level == "layer":
            on.needs("branches")
        computed = every(on.steps, self.interval, self.first)
        return [on.schedule(LEVELS[self.level], computed, Taylor(self.order), name="interval")]
