"""TeaCache: skip while the modulated input of the first block has not moved far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from ..plan_format import PlanError, ProbePoint, RegionSchedule
from .base import CHAIN, DynamicPolicy, Limit, Reading, Subject, option


@dataclass(frozen=True)
class TeaCache(DynamicPolicy):
    """Add up how far the modulated input moves from step to step; compute at `threshold`.

    Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model (arXiv 2411.19108). Each
    relative L1 distance goes through a polynomial (`coefficients`, highest power first) that its
    authors fit to one model; the identity is what holds for all. First and last step compute, and
    on a skipped one the blocks' last residual is added to their input.
    """

    name: ClassVar[str] = "teacache"
    source: ClassVar[str] = "arXiv 2411.19108"
    probes: ClassVar[tuple[ProbePoint, ...]] = (ProbePoint("modulated", "previous"),)

    threshold: float = option(0.25, 0.0)
    coefficients: tuple[float, ...] = (1.0, 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = cast(Any, self.coefficients)  # from a file or a command line it may be anything
        if not (
            isinstance(given, tuple) and given and all(isinstance(a, (int, float)) for a in given)
        ):
            raise PlanError(f"policy 'teacache': coefficients must be numbers, got {given!r}")

    def schedules(self, on: Subject) -> Sequence[RegionSchedule]:
        """The whole chain of blocks, as residual."""
        on.needs("blocks")
        return [on.schedule(CHAIN, (on.steps - 1,), what="delta", name="by data")]

    def limit(self) -> Limit | None:
        """The threshold of the sum, where distances count as they are."""
        return Limit(self.threshold, True) if self.coefficients == (1.0, 0.0) else None

    def begin(self, steps: int) -> Accumulator:
        """Nothing has moved yet."""
        return Accumulator(self)


@dataclass
class Accumulator:
    """The distance since the last computed step."""

    policy: TeaCache
    total: float = 0.0

    def skips(self, step: int, readings: Sequence[Reading]) -> bool:
        """Whether the sum, this step's share included, is below the threshold."""
        share = 0.0
        for coefficient in self.policy.coefficients:
            share = share * readings[0].relative + coefficient
        self.total += share
        return self.total < self.policy.threshold

    def computed(self, step: int, moved: Sequence[Reading | None]) -> None:
        """Start anew."""
        self.total = 0.0
