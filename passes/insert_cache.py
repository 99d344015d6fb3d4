"""insert-cache: slots, and a conditional around every scheduled region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from .base import PassContext, PassError, PassResult
from .cached_regions import bind, probe_slots, recordings, stored
from .ir import StepGraph
from .probes import probe_values
from .rewriter import Rewriter


@dataclass(frozen=True)
class InsertCache:
    """Wrap each scheduled region in a `cache.cond`: forecast its live-outs, or compute and write.

    A schedule of the region's delta writes what the region added to its live-in, and a hit adds the
    forecast to the live-in of this step. Under a rule that decides by data the predicate comes from
    a `cache.probe` of a value that is computed before.

    With `ctx.record`, the regions so named (kinds, selectors, "SELECTOR delta") get a `cache.write`
    of their live-outs instead: the step computes in full and hands out what the profile needs.

    Given::

        %mul = mul(%x, %emb) : f32[2,16,8] @blocks.0
        %linear_3 = linear(%mul, …) : f32[2,16,8] @blocks.0.mlp
        %h = add(%x, %linear_3) : f32[2,16,8] @blocks.0

    Result::

        slot $blocks.0.mlp : f32[2,16,8] x2  2.0 KiB
        …
        %cache_cond = cache.cond %plan_blocks_0_mlp $blocks.0.mlp {
          hit:
            %cache_forecast = cache.forecast $blocks.0.mlp, %weights_blocks_0_mlp : f32[2,16,8]
            yield (%cache_forecast,)
          miss:
            %mul = mul(%x, %emb) : f32[2,16,8] @blocks.0
            %linear_3 = linear(%mul, …) : f32[2,16,8] @blocks.0.mlp
            %cache_write = cache.write $blocks.0.mlp, %linear_3 : f32[2,16,8]
            yield (%linear_3,)
        }
        %getitem_1 = getitem(%cache_cond, 0) : f32[2,16,8] @blocks.0.mlp
        %h = add(%x, %getitem_1) : f32[2,16,8] @blocks.0
    """

    name: ClassVar[str] = "insert-cache"
    requires: ClassVar[frozenset[str]] = frozenset({"regions", "planned"})
    ensures: ClassVar[frozenset[str]] = frozenset({"cached"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Rewrite the graph; raises PassError where slots do not fit the budget or format."""
        facts = graph.facts | self.ensures
        plans = {s.region: s for s in ctx.plan.regions} if ctx.plan else {}
        nodes = graph.nodes_by_name()
        cached = [
            stored(
                bind(graph, graph.region(name), plans[graph.schedules.get(name, name)], nodes),
                nodes,
                ctx.slot_format,
            )
            for name in graph.scheduled
        ]
        inside = {n for c in cached for n in c.region.nodes}  # a conditional hides what it computes
        recorded = recordings(graph, ctx.record, inside, nodes)
        rule = ctx.plan.rule if ctx.plan else None
        probes = probe_slots(probe_values(graph, rule), nodes)
        slots = [s for c in (*cached, *recorded) for s in c.slots] + list(probes.values())
        if not slots:
            return PassResult(graph.with_(facts=facts), False, {"slots": 0})
        need = sum(s.nbytes for c in cached for s in c.slots) + sum(
            s.nbytes for s in probes.values()
        )
        if ctx.slot_budget is not None and need > ctx.slot_budget:
            raise PassError(
                f"insert-cache: slots need {need} bytes, the budget is {ctx.slot_budget}; "
                "raise slot_budget, or plan a smaller history or region"
            )
        threshold = dict(rule.options).get("threshold", 0.0) if rule else 0.0
        module = Rewriter(graph, slots, cast(float, threshold)).run(cached, recorded, probes)
        done = graph.with_(module=module, slots=tuple(slots), facts=facts)
        total = sum(s.nbytes for s in slots)
        return PassResult(done, True, {"slots": len(slots), "slot bytes": total})
