"""Delta-DiT: what a range of blocks adds is reused, the rear ones early, the front ones late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..plan_format import RegionSchedule
from .base import Policy, Subject, every, option


@dataclass(frozen=True)
class DeltaDit(Policy):
    """Reuse the deltas of a `share` of the blocks at all but every `interval`-th step.

    Delta-DiT: A Training-Free Acceleration Method Tailored for Diffusion Transformers (arXiv
    2406.01125). Outlines come from the front blocks and come first, so that up to `boundary` (a
    share of the steps) the rear blocks are skipped, after it the front blocks. Where both ranges
    overlap, the overlap is a region of its own that is skipped in both halves; the defaults are the
    paper's for 28 blocks and 20 steps (21 blocks, boundary 12).
    """

    name: ClassVar[str] = "delta-dit"
    source: ClassVar[str] = "arXiv 2406.01125"

    interval: int = option(2, 1)
    share: float = option(0.75, 0.0)
    boundary: float = option(0.6, 0.0)

    def schedules(self, on: Subject) -> Sequence[RegionSchedule]:
        """Front, overlap (or neither) and rear: disjoint runs of blocks."""
        on.needs("blocks", 2)
        blocks = on.outline.blocks
        count = min(max(round(self.share * blocks), 1), blocks - 1)
        change = round(self.boundary * on.steps)
        fresh = set(every(on.steps, self.interval))
        early, late = set(range(change)), set(range(change, on.steps))
        low, high = sorted((count, blocks - count))
        both = set[int]() if count <= blocks - count else early | late
        skipped = {(0, low): late, (low, high): both, (high, blocks): early}
        return [
            on.schedule(
                f"blocks[{m}:{n}]",
                set(range(on.steps)) - (steps - fresh),
                what="delta",
                name="rear early, front late",
            )
            for (m, n), steps in skipped.items()
            if m < n and steps - fresh
        ]
