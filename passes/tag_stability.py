"""tag-stability: how much each region changes from step to step, proved or measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from .base import PassContext, PassResult
from .ir import Region, StepGraph
from .profile import Profile


@dataclass(frozen=True)
class TagStability:
    """Give each region its class: a measurement where a profile has one, volatile else.

    `d` is the root-mean-square over steps of |y_{t+1} - y_t| / |y_t|. Below `threshold` the
    region is stable: a forecast from few values will do. Without a profile nothing is claimed.

    Given (and a profile in which the denoiser drifts by 0.021)::

        region denoiser (%hidden_states, %kv, %emb) -> (%linear_4) [volatile]  // denoiser, …

    Result::

        region denoiser (%hidden_states, %kv, %emb) -> (%linear_4) [stable d=0.021]  // denoiser, …
    """

    threshold: float = 0.25

    name: ClassVar[str] = "tag-stability"
    requires: ClassVar[frozenset[str]] = frozenset({"regions"})
    ensures: ClassVar[frozenset[str]] = frozenset({"stability"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Attach `stability` and `drift` to every region that the profile measured."""
        facts = graph.facts | self.ensures
        if ctx.profile is None:
            return PassResult(graph.with_(facts=facts), False, {"measured": 0})
        measured = {r.region for r in ctx.profile.regions}
        regions = tuple(
            self._tag(r, ctx.profile) if r.name in measured else r for r in graph.regions
        )
        done = graph.with_(regions=regions, profile=ctx.profile, facts=facts)
        return PassResult(done, True, {"measured": sum(r.drift is not None for r in regions)})

    def _tag(self, region: Region, profile: Profile) -> Region:
        drift = profile.drift(region.name)
        rms = float((drift**2).mean() ** 0.5)
        kind = "stable" if rms < self.threshold else "volatile"
        return replace(region, stability=kind, drift=rms)
