"""plan: attach the schedule, after checking that it fits this graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import PassContext, PassError, PassResult
from .ir import StepGraph


@dataclass(frozen=True)
class PlanSteps:
    """Choose which regions are scheduled, from the plan in the context.

    Solving (which steps compute, with which weights) needs a profile and happens in
    `passes.portfolio`; here the result is bound to the graph. A region that the graph lacks, that
    cannot be cached, or that overlaps another scheduled one is an error.

    Given (and a plan over `blocks.0.mlp` that computes 3 of 8 steps)::

        region @blocks.0.mlp (%x, %emb) -> (%linear_3) [volatile]  // branch, 2.05 kMAC, 2 ops

    Result::

        region @blocks.0.mlp (%x, %emb) -> (%linear_3) [volatile]  // …, scheduled C.C..C..
    """

    name: ClassVar[str] = "plan"
    requires: ClassVar[frozenset[str]] = frozenset({"regions"})
    ensures: ClassVar[frozenset[str]] = frozenset({"planned"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Set `scheduled`; raises PassError if the plan does not fit the graph."""
        facts = graph.facts | self.ensures
        if ctx.plan is None:
            return PassResult(graph.with_(facts=facts), False, {"scheduled": 0})
        owner: dict[str, str] = {}
        for schedule in ctx.plan.regions:
            try:
                region = graph.region(schedule.region)
            except KeyError as missing:
                raise PassError(f"plan: {missing.args[0]}; the plan is for another model") from None
            if region.refusal is not None:
                raise PassError(f"plan: region {region.name} cannot be cached: {region.refusal}")
            for node in region.nodes:
                if node in owner:
                    raise PassError(
                        f"plan: regions {owner[node]} and {region.name} overlap at %{node}; "
                        "schedule only one of them"
                    )
                owner[node] = region.name
        position = {n.name: i for i, n in enumerate(graph.graph.nodes)}
        names = [s.region for s in ctx.plan.regions]
        names.sort(key=lambda r: position[graph.region(r).nodes[0]])
        stats: dict[str, int | float | str] = {
            s.region: f"computes {len(s.computed)} of {len(ctx.plan.timesteps)}"
            for s in ctx.plan.regions
        }
        return PassResult(graph.with_(scheduled=tuple(names), facts=facts), True, stats)
