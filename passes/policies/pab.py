"""PAB: attention is broadcast to following steps, the steadier kinds over longer ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..plan_format import PlanError, RegionSchedule
from ..roles import ROLES
from .base import Policy, Subject, option


@dataclass(frozen=True)
class Pab(Policy):
    """Compute each kind of branch at every n-th step, n growing with how steady the kind is.

    Real-Time Video Generation with Pyramid Attention Broadcast (arXiv 2408.12588): self-attention
    every second step, cross-attention every sixth; `mlp` is 1 (always computed) unless asked for.
    Only between `until` and `after`, in thousandths of the noise range, is anything broadcast: at
    both ends of the denoising outputs change too fast.
    """

    name: ClassVar[str] = "pab"
    source: ClassVar[str] = "arXiv 2408.12588"

    attention: int = option(2, 1)
    cross_attention: int = option(6, 1)
    mlp: int = option(1, 1)
    until: float = 100.0
    after: float = 800.0

    def schedules(self, on: Subject) -> Sequence[RegionSchedule]:
        """One schedule for each kind of branch that is ever skipped."""
        on.needs("branches")
        # Models take the time as 0..1000 or 0..1, and a few count upwards.
        unit = 1.0 if max(abs(t) for t in on.timesteps) > 1.5 else 1000.0
        rising = on.timesteps[-1] > on.timesteps[0]
        noise = [1000.0 - t * unit if rising else t * unit for t in on.timesteps]
        inside = [self.until < level < self.after for level in noise]
        found: list[RegionSchedule] = []
        for role in (r for r in ROLES if r in on.outline.roles):
            interval = int(getattr(self, role.replace("-", "_")))
            computed = [i for i, within in enumerate(inside) if not within or i % interval == 0]
            if len(computed) < on.steps:
                found.append(on.schedule(f"{role}[:]", computed, name=f"every {interval}"))
        if not found:
            raise PlanError(
                "policy 'pab' skips nothing: every interval is 1, or the range is empty"
            )
        return found
