"""First Block Cache and DBCache: what the first blocks add decides about those behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..forecasters import Taylor
from ..plan_format import PlanError, ProbePoint, RegionSchedule
from .base import DynamicPolicy, Limit, Reading, Subject, option


@dataclass(frozen=True)
class DBCache(DynamicPolicy):
    """Run the first `front` and the last `back` blocks always, the middle when the front moved.

    Dual Block Cache of the library cache-dit (github.com/vipshop/cache-dit), with its defaults. The
    middle is skipped where what the front blocks add differs from the last computed step's by less
    than `threshold` (relative L1), after `warmup` steps, at most `max_continuous` in a row and
    `max_cached` in all (-1: no limit). What the middle adds is reused, or with an `order` above 0
    forecast as by TaylorSeer. A chain too short for `front` and `back` is an error.
    """

    name: ClassVar[str] = "dbcache"
    source: ClassVar[str] = "github.com/vipshop/cache-dit"

    front: int = option(8, 1)
    back: int = option(0, 0)
    threshold: float = option(0.08, 0.0)
    warmup: int = option(8, 1)
    max_cached: int = option(-1, -1)
    max_continuous: int = option(-1, -1)
    order: int = option(0, 0)

    def points(self) -> tuple[ProbePoint, ...]:
        """What the front blocks add, against the last computed step."""
        return (ProbePoint(f"blocks[0:{self.front}] delta", "computed"),)

    @property
    def taylor(self) -> int:
        """The forecast's order."""
        return self.order

    def schedules(self, on: Subject) -> Sequence[RegionSchedule]:
        """The middle blocks, as residual."""
        if self.order > 3:
            raise PlanError(f"policy {self.name!r}: order must be 0 to 3, got {self.order}")
        on.needs("blocks", self.front + self.back + 1)
        middle = f"blocks[{self.front}:{on.outline.blocks - self.back}]"
        warmup = range(min(self.warmup, on.steps))
        return [on.schedule(middle, warmup, Taylor(self.order), what="delta", name="by data")]

    def limit(self) -> Limit | None:
        """The threshold, where no steps are counted; what equals it is near enough."""
        if self.max_cached >= 0 or self.max_continuous >= 0 or self.order:
            return None
        return Limit(float(np.nextafter(np.float32(self.threshold), np.float32(np.inf))), False)

    def begin(self, steps: int) -> Counter:
        """No step has been skipped yet."""
        return Counter(self)


@dataclass(frozen=True)
class FirstBlockCache(DBCache):
    """DBCache with one front block, and nothing but the threshold to decide.

    ParaAttention's First Block Cache (github.com/chengzeyi/ParaAttention), as diffusers has it.
    """

    name: ClassVar[str] = "firstblockcache"
    source: ClassVar[str] = "github.com/chengzeyi/ParaAttention"

    front: int = option(1, 1)
    threshold: float = option(0.05, 0.0)
    warmup: int = option(1, 1)


@dataclass
class Counter:
    """How many steps were skipped, in all and in a row."""

    policy: DBCache
    cached: int = 0
    row: int = 0

    def skips(self, step: int, readings: Sequence[Reading]) -> bool:
        """Whether the front hardly moved and the limits allow it."""
        policy = self.policy
        near = readings[0].relative <= policy.threshold
        left = policy.max_cached < 0 or self.cached < policy.max_cached
        if not (near and left and not 0 <= policy.max_continuous <= self.row):
            return False
        self.cached, self.row = self.cached + 1, self.row + 1
        return True

    def computed(self, step: int, moved: Sequence[Reading | None]) -> None:
        """The row ends."""
        self.row = 0
