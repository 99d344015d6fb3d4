"""FORA: every residual branch is reused for a fixed number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..plan_format import RegionSchedule
from .base import BRANCHES, Policy, Subject, every, option


@dataclass(frozen=True)
class Fora(Policy):
    """Compute attention and MLP of all blocks every `interval` steps, reuse them in between.

    FORA: Fast-Forward Caching in Diffusion Transformer Acceleration (arXiv 2407.01425). Modulation
    and residual sums stay those of the step.
    """

    name: ClassVar[str] = "fora"
    source: ClassVar[str] = "arXiv 2407.01425"

    interval: int = option(3, 1)

    def schedules(self, on: Subject) -> Sequence[RegionSchedule]:
        """One schedule for all branches."""
        on.needs("branches")
        return [on.schedule(BRANCHES, every(on.steps, self.interval), name="interval")]
