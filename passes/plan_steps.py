"""plan: attach the schedule, after checking that it fits this graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import PassContext, PassError, PassResult
from .ir import Region, StepGraph
from .probes import head_nodes, probe_values
from .selectors import resolve


@dataclass(frozen=True)
class PlanSteps:
    """Choose which regions are scheduled, from the plan in the context.

    Solving (which steps compute, with which weights) needs a profile and happens in
    `passes.portfolio` and `passes.policies`; here the result is bound to the graph. A selector
    becomes the regions that it names, runs of blocks are formed. A region that the graph lacks,
    that cannot be cached, or that overlaps another scheduled one is an error; of the many that a
    role names, those that cannot be cached are left out.

    With a rule that decides by data, what a decision looks at has to be computed before it: that
    work belongs to no region.

    Given (and a plan over `blocks.0.mlp` that computes 3 of 8 steps)::

        region @blocks.0.mlp (%x, %emb) -> (%linear_3) [volatile]  // mlp branch, 2.05 kMAC, 2 ops

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
        head = head_nodes(graph, probe_values(graph, ctx.plan.rule))
        for node in graph.graph.nodes:
            if node.name in head and "autocast" in node.meta:
                raise PassError(f"plan: a decision would cut the autocast range at %{node.name}")
        owner: dict[str, str] = {}
        chosen: dict[str, Region] = {}
        schedules: dict[str, str] = {}
        for schedule in ctx.plan.regions:
            for region in _cacheable(resolve(graph, schedule.region, head)):
                for node in region.nodes:
                    if node in owner:
                        raise PassError(
                            f"plan: regions {owner[node]} and {region.name} overlap at %{node}; "
                            "schedule only one of them"
                        )
                    owner[node] = region.name
                chosen[region.name] = region
                schedules[region.name] = schedule.region
        position = {n.name: i for i, n in enumerate(graph.graph.nodes)}
        names = sorted(chosen, key=lambda r: position[chosen[r].nodes[0]])
        known = {r.name for r in graph.regions}
        regions = tuple(chosen.get(r.name, r) for r in graph.regions)
        regions += tuple(r for r in chosen.values() if r.name not in known)
        stats: dict[str, int | float | str] = {
            s.region: f"computes {len(s.computed)} of {len(ctx.plan.timesteps)}"
            + (" at least" if ctx.plan.rule is not None else "")
            for s in ctx.plan.regions
        }
        done = graph.with_(
            regions=regions, scheduled=tuple(names), schedules=schedules, facts=facts
        )
        return PassResult(done, True, stats)


def _cacheable(regions: tuple[Region, ...]) -> list[Region]:
    """The regions that can be cached; PassError if the one that was asked for, or all, cannot."""
    usable = [r for r in regions if r.refusal is None]
    if not usable:
        first = regions[0]
        raise PassError(f"plan: region {first.name} cannot be cached: {first.refusal}")
    return usable
