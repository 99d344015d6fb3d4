"""Which ways are measured, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .peers import CacheDit, TaylorSeer
from .ways import Compiled, Ditcache, Eager, FirstBlock, Regional, Way


@dataclass(frozen=True)
class Choice:
    """Which ways to measure, in order of interest; `quick` leaves out what costs most.

    Ways of ditcache that share a compiled model stand together.
    """

    quick: bool = False
    inner: str = "inductor"
    speedups: Sequence[float] = field(default=(3.0, 2.0, 5.0))

    def ways(self) -> list[Way]:
        inner = self.inner
        plain = Ditcache("ditcache exact", compiled=True, inner=inner)
        graphs = replace(plain, name="ditcache exact graphs", graphs=True)
        guarded = replace(graphs, name="ditcache 3x guarded", speedup=3.0, guard="compute")
        speedups = self.speedups[:1] if self.quick else self.speedups
        found: list[Way] = [Eager("eager"), Compiled("compile", compiled=True, inner=inner)]
        for base in (plain, graphs):
            suffix = " graphs" if base.graphs else ""
            found += [base]
            found += [replace(base, name=f"ditcache {s:g}x{suffix}", speedup=s) for s in speedups]
        found += [guarded, TaylorSeer("diffusers TaylorSeer 3x"), CacheDit("cache-dit 3x")]
        if self.quick:
            return found
        first = FirstBlock("first block, host", compiled=True, inner=inner)
        found += [first, replace(first, name="first block, device", graphs=True, on_device=True)]
        found += [
            Compiled("reduce-overhead", compiled=True, mode="reduce-overhead"),
            Regional("regional", compiled=True, inner=inner),
            TaylorSeer("diffusers TaylorSeer 3x compiled", compiled=True),
            CacheDit("cache-dit 3x compiled", compiled=True),
        ]
        return found
