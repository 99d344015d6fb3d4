"""MagCache: skip while the residual's magnitude, as calibrated, hardly changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..plan_format import RegionSchedule
from .base import CHAIN, Policy, Subject, option


@dataclass(frozen=True)
class MagCache(Policy):
    """Reuse the block chain's residual while the accumulated magnitude error stays small.

    MagCache: Fast Video Generation with Magnitude-Aware Cache (arXiv 2506.09045). The ratio of the
    residual's magnitude to the step before's is a property of the model: measured once, it decides
    which steps compute. Its authors average ratios of token norms; here it is the ratio of rms
    norms that the profile holds. At most `max_skips` in a row, none in the first `retention`.
    """

    name: ClassVar[str] = "magcache"
    source: ClassVar[str] = "arXiv 2506.09045"
    records: ClassVar[tuple[str, ...]] = ("blocks[:] delta",)
    measured: ClassVar[bool] = True

    threshold: float = option(0.06, 0.0)
    max_skips: int = option(3, 1)
    retention: float = option(0.2, 0.0)

    def schedules(self, on: Subject) -> Sequence[RegionSchedule]:
        """The paper's loop over the measured ratios."""
        power = np.diagonal(on.gram(self.records[0]))
        ratios = np.sqrt(power[1:] / np.maximum(power[:-1], np.finfo(np.float64).tiny))
        kept = int(self.retention * on.steps + 0.5)
        computed: list[int] = []
        ratio, error, skipped = 1.0, 0.0, 0
        for step in range(on.steps):
            if step >= max(kept, 1):
                ratio *= float(ratios[step - 1])
                error += abs(1.0 - ratio)
                skipped += 1
                if error <= self.threshold and skipped <= self.max_skips:
                    continue
                ratio, error, skipped = 1.0, 0.0, 0
            computed.append(step)
        return [on.schedule(CHAIN, computed, what="delta", name="magnitude")]
