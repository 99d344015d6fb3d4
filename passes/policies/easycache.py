"""EasyCache: predict from how far the latents moved how far the output will have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..plan_format import ProbePoint, RegionSchedule
from .base import DENOISER, DynamicPolicy, Reading, Subject, option


@dataclass(frozen=True)
class EasyCache(DynamicPolicy):
    """Skip while the predicted change of the output, added up, stays below `threshold`.

    Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching (arXiv
    2507.02860). Between computed steps the ratio of output change to input change is measured; it
    predicts, from the latents alone, the change at each step after. A skipped step adds the last
    computed difference of output and latents to its own latents. The first `warmup` and the last
    `end` steps compute.
    """

    name: ClassVar[str] = "easycache"
    source: ClassVar[str] = "arXiv 2507.02860"
    probes: ClassVar[tuple[ProbePoint, ...]] = (
        ProbePoint("latents", "previous"),
        ProbePoint("latents", "computed", measured=True),
        ProbePoint("output", "computed", measured=True),
    )

    threshold: float = option(0.05, 0.0)
    warmup: int = option(10, 2)
    end: int = option(2, 0)

    def schedules(self, on: Subject) -> Sequence[RegionSchedule]:
        """The whole denoiser, less its latents."""
        last = range(max(on.steps - self.end, 0), on.steps)
        kept = {*range(min(self.warmup, on.steps)), *last}
        return [on.schedule(DENOISER, kept, what="delta", name="by data")]

    def begin(self, steps: int) -> Predictor:
        """Nothing is known of how outputs follow inputs."""
        return Predictor(self)


@dataclass
class Predictor:
    """Output change per input change, the output's size, and what has been predicted so far."""

    policy: EasyCache
    rate: float | None = None
    size: float = 0.0
    total: float = 0.0

    def skips(self, step: int, readings: Sequence[Reading]) -> bool:
        """Whether the predicted change since the last computed step is small."""
        if self.rate is None or not self.size:
            return False
        self.total += self.rate * readings[0].distance / self.size
        return self.total < self.policy.threshold

    def computed(self, step: int, moved: Sequence[Reading | None]) -> None:
        """Measure the rate anew."""
        self.total = 0.0
        if (inputs := moved[0]) is not None and (outputs := moved[1]) is not None:
            self.rate = outputs.distance / inputs.distance if inputs.distance else None
            self.size = outputs.size
