"""One breaking test for every rule on regions, deltas and decisions."""

from __future__ import annotations

import dataclasses

from ditcache.passes.ir import output_node, placeholders
from ditcache.passes.ops import cache_cond

from .breaking import arms, broken


def test_v12_regions_that_share_work(planned):
    def harm(graph):
        return graph.with_(scheduled=("blocks.0", "blocks.0.mlp"))

    error = broken("plan", harm, plan=planned("blocks.0"), check="fast")
    assert error.rule == "V12"
    assert "is in blocks.0 and in blocks.0.mlp" in str(error)


def delta_of(plan):
    regions = tuple(dataclasses.replace(r, what="delta") for r in plan.regions)
    return dataclasses.replace(plan, regions=regions)


def test_v13_a_delta_on_top_of_another_value(planned):
    def harm(graph):
        _, hit, _ = arms(graph)
        made = output_node(hit.graph).args[0][0]
        other = next(n for n in placeholders(hit.graph) if n.name != made.args[2].name)
        made.args = (*made.args[:2], other)

    error = broken("insert-cache", harm, plan=delta_of(planned("blocks.0")), check="fast")
    assert error.rule == "V13"
    assert "$blocks.0 is written less %h and forecast on top of %" in str(error)


def test_v13_a_forecast_that_is_not_added(planned):
    def harm(graph):
        _, hit, _ = arms(graph)
        made = output_node(hit.graph).args[0][0]
        made.args = made.args[:2]

    error = broken("insert-cache", harm, plan=delta_of(planned("blocks.0")), check="fast")
    assert error.rule == "V13"
    assert "forecast on top of %None" in str(error)


def test_the_rules_see_into_a_guarded_step(planned):
    """V2 and V6, of a conditional that is a variant's."""

    def harm_of(change):
        def harm(graph):
            made = next(v for v in graph.variants if v.stage == "decided")
            cond = next(n for n in made.module.graph.nodes if n.target is cache_cond)
            change(made.module, cond)

        return harm

    def narrower(module, cond):
        miss = module.get_submodule(cond.args[2].target)
        (value,) = output_node(miss.graph).args[0]
        value.meta["example_value"] = value.meta["example_value"][:1]

    def late(module, cond):
        cond.args = (next(iter(cond.users)), *cond.args[1:])

    plan = planned("denoiser")
    for change, rule in ((narrower, "V2"), (late, "V1")):
        error = broken("lower-cond", harm_of(change), plan=plan, check="fast", guarded=True)
        assert error.rule == rule


def deciding(plan):
    from ditcache.passes.plan_format import DecisionRule, ProbePoint

    probes = (ProbePoint("blocks[0:1] delta"),)
    options = (("front", 1), ("threshold", 0.1), ("warmup", 1))
    return dataclasses.replace(plan, rule=DecisionRule("dbcache", options, probes))


def test_v14_a_tail_that_computes_what_the_head_did(planned):
    def harm(graph):
        head, tail, *_ = (v for v in graph.variants if v.stage != "whole")
        return graph.with_(variants=(head, dataclasses.replace(head, stage="tail"), tail))

    error = broken("specialize", harm, plan=deciding(planned("blocks[1:]")), check="fast")
    assert error.rule == "V14"
    assert "expected: each value computed once in a step" in str(error)


def test_v14_a_carried_value_that_the_head_does_not_give(planned):
    def harm(graph):
        first, head, *tails = graph.variants
        short = dataclasses.replace(head, carried=head.carried[:-1])
        return graph.with_(variants=(first, short, *tails))

    error = broken("specialize", harm, plan=deciding(planned("blocks[1:]")), check="fast")
    assert error.rule == "V14"
    assert "expected: 1 carried values" in str(error)
    assert "got: the head gives 2" in str(error)
