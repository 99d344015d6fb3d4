"""DeepCache: the deep part of a UNet is reused, the shallow layers run at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..plan_format import RegionSchedule
from .base import Policy, Subject, every, option


@dataclass(frozen=True)
class DeepCache(Policy):
    """Compute the deep part every `interval` steps.

    DeepCache: Accelerating Diffusion Models for Free (arXiv 2312.00858), with its uniform schedule.
    The cut is the one of fewest bytes that leaves at least half of the work inside; `region` takes
    any other.
    """

    name: ClassVar[str] = "deepcache"
    source: ClassVar[str] = "arXiv 2312.00858"

    interval: int = option(3, 1)
    region: str = "deep"

    def schedules(self, on: Subject) -> Sequence[RegionSchedule]:
        """One region."""
        if self.region == "deep":
            on.needs("deep")
        return [on.schedule(self.region, every(on.steps, self.interval), name="interval")]
