"""SmoothCache: each kind of layer is reused for as long as its calibrated error stays small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..plan_format import PlanError, RegionSchedule
from .base import Policy, Subject, option


@dataclass(frozen=True)
class SmoothCache(Policy):
    """Reuse a kind of branch while its error against the last computed step is below `threshold`.

    SmoothCache: A Universal Inference Acceleration Technique for Diffusion Transformers (arXiv
    2411.10510), which averages relative L1 errors over the layers of a kind. Here the error is the
    relative rms one of all its outputs together, which is what the profile holds. A skip reaches at
    most `max_gap` steps.
    """

    name: ClassVar[str] = "smoothcache"
    source: ClassVar[str] = "arXiv 2411.10510"
    records: ClassVar[tuple[str, ...]] = ("attention[:]", "cross-attention[:]", "mlp[:]")
    measured: ClassVar[bool] = True

    threshold: float = option(0.18, 0.0)
    max_gap: int = option(3, 1)

    def schedules(self, on: Subject) -> Sequence[RegionSchedule]:
        """One schedule for each kind of branch."""
        on.needs("branches")
        found: list[RegionSchedule] = []
        for kind in (f"{role}[:]" for role in on.outline.roles):
            gram = on.gram(kind)
            power = np.diagonal(gram)
            computed = [0]
            for step in range(1, on.steps):
                last = computed[-1]
                change = max(power[step] + power[last] - gram[step, last] - gram[last, step], 0.0)
                small = change < self.threshold**2 * power[step]
                if not (small and step - last <= self.max_gap):
                    computed.append(step)
            if len(computed) < on.steps:
                found.append(on.schedule(kind, computed, name="calibrated error"))
        if not found:
            raise PlanError(
                f"policy 'smoothcache' skips nothing at threshold {self.threshold:g}; raise it"
            )
        return found
