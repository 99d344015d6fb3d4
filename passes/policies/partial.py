"""Partial recomputation: the ends of the block chain run at every step, the middle is forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..forecasters import Taylor
from ..plan_format import RegionSchedule
from ..roles import MLP
from .base import Policy, Subject, every, option


@dataclass(frozen=True)
class Partial(Policy):
    """Forecast what the blocks between the first `front` and the last `back` add.

    Compute them at `first` steps and every `interval`-th after those, forecast by a Taylor series
    of that `order`.
    """

    name: ClassVar[str] = "partial"
    source: ClassVar[str] = "ditcache"

    front: int = option(1, 0)
    back: int = option(1, 0)
    interval: int = option(3, 1)
    first: int = option(3, 1)
    order: int = option(1, 0)

    def schedules(self, on: Subject) -> Sequence[RegionSchedule]:
        """One run of blocks."""
        on.needs("blocks", self.front + self.back + 1)
        region = f"blocks[{self.front}:{on.outline.blocks - self.back}]"
        computed = every(on.steps, self.interval, self.first)
        return [on.schedule(region, computed, Taylor(self.order), what="delta", name="interval")]


@dataclass(frozen=True)
class Branches(Policy):
    """Forecast all attention, recompute the MLPs, on the steps that `Partial` takes."""

    name: ClassVar[str] = "branches"
    source: ClassVar[str] = "ditcache"

    interval: int = option(3, 1)
    first: int = option(3, 1)
    order: int = option(1, 0)

    def schedules(self, on: Subject) -> Sequence[RegionSchedule]:
        """One schedule for attention of both kinds."""
        roles = [f"{role}[:]" for role in on.outline.roles if role != MLP]
        on.needs("attention" if not roles else "branches")
        computed = every(on.steps, self.interval, self.first)
        return [on.schedule("+".join(roles), computed, Taylor(self.order), name="interval")]
