"""One breaking test for every rule: build a sound graph, break it, and read the message."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import toy_models as models
from ditcache.passes import pipeline
from ditcache.passes.base import PassContext
from ditcache.passes.ir import Depends, InputKind, kind_of, output_node, placeholders, value_of
from ditcache.passes.ops import cache_write
from ditcache.passes.trace import trace
from ditcache.passes.verifier import RULES, verify

from .breaking import arms, broken, nothing


def test_v1_wrong_shape():
    def harm(graph):
        node = graph.node("h_1")
        node.meta["example_value"] = value_of(node)[:, :3]

    error = broken("form-regions", harm)
    assert error.rule == "V1"
    assert "expected: f32[2,16,8] on cpu by recomputation" in str(error)
    assert "got: f32[2,3,8]" in str(error)
    assert "%h_1 = add(%x, %input_3)" in str(error)


def test_v1_wrong_argument():
    def harm(graph):
        graph.node("linear_16").args = (graph.node("h_1"), *graph.node("q").args[1:])

    error = broken("form-regions", harm)
    assert error.rule == "V1"
    assert "got: f32[2,16,4]" in str(error)


def test_v1_an_op_that_does_not_run():
    def harm(graph):
        graph.node("linear_16").args = (graph.node("timestep"), *graph.node("q").args[1:])

    error = broken("form-regions", harm)
    assert error.rule == "V1"
    assert "expected: an op that runs on its inputs" in str(error)


def test_v1_lint_runs_without_recomputation():
    def harm(graph):
        late = graph.node("h_1")
        graph.node("q").args = (late, *graph.node("q").args[1:])

    error = broken("form-regions", harm, check="fast")
    assert error.rule == "V1"
    assert "a well-formed FX graph" in str(error)


def test_v2_arms_that_differ(planned):
    def harm(graph):
        _, hit, _ = arms(graph)
        forecast = next(n for n in hit.graph.nodes if n.op == "call_function")
        forecast.meta["example_value"] = value_of(forecast).to(torch.bfloat16)

    error = broken("insert-cache", harm, plan=planned("blocks.0"), check="fast")
    assert error.rule == "V2"
    page = Path(__file__).parents[2] / "docs" / "passes" / "README.md"
    assert str(error).replace("broken-", "") in page.read_text()


def test_v2_another_layout(planned):
    def harm(graph):
        _, hit, _ = arms(graph)
        forecast = next(n for n in hit.graph.nodes if n.op == "call_function")
        value = value_of(forecast)
        forecast.meta["example_value"] = value.transpose(1, 2).contiguous().transpose(1, 2)

    error = broken("insert-cache", harm, plan=planned("blocks.0"), check="fast")
    assert error.rule == "V2"
    assert "stride (128, 1, 16) on cpu from hit" in str(error)


def test_v2_another_number_of_values(planned):
    def harm(graph):
        _, hit, _ = arms(graph)
        output_node(hit.graph).args = ((),)

    error = broken("insert-cache", harm, plan=planned("blocks.0"), check="fast")
    assert error.rule == "V2"
    assert "got: 0 from hit, 1 from miss" in str(error)


def test_v3_a_forecast_from_values_not_written(planned):
    def change(plan):
        region = plan.regions[0]
        rows = (region.weights[0], (1.0, 1.0), *region.weights[2:])
        return dataclasses.replace(plan, regions=(dataclasses.replace(region, weights=rows),))

    plan = planned("blocks.0", history=2, computed=(0, 2))
    error = broken("insert-cache", nothing, plan=plan, change=change)
    assert error.rule == "V3"
    assert "got: step 1 of blocks.0 reads 2, 1 written, slot x2" in str(error)


def test_v3_a_slot_that_is_too_shallow(planned):
    def harm(graph):
        return graph.with_(slots=tuple(dataclasses.replace(s, history=1) for s in graph.slots))

    plan = planned("blocks.0", history=2, computed=(0, 1), steps=4)
    error = broken("insert-cache", harm, plan=plan)
    assert error.rule == "V3"
    assert "reads 2, 2 written, slot x1" in str(error)


def test_v4_two_writes_of_one_slot(planned):
    def harm(graph):
        _, _, miss = arms(graph)
        write = next(n for n in miss.graph.nodes if n.target is cache_write)
        with miss.graph.inserting_after(write):
            miss.graph.call_function(cache_write, write.args)

    error = broken("insert-cache", harm, plan=planned("blocks.0"), check="fast")
    assert error.rule == "V4"
    assert "expected: one write of $blocks.0 in a step" in str(error)
    assert "got: 2 writes" in str(error)


def test_v4_two_writes_in_a_variant(planned):
    def harm(graph):
        first, *rest = graph.variants
        twice = dataclasses.replace(first, writes=first.writes * 2)
        return graph.with_(variants=(twice, *rest))

    error = broken("specialize", harm, plan=planned("blocks.0"), check="fast")
    assert error.rule == "V4"
    assert "one write of $blocks.0 in a variant" in str(error)


def test_v5_an_arm_that_yields_its_slot(planned):
    def harm(graph):
        _, hit, _ = arms(graph)
        slot = next(n for n in placeholders(hit.graph) if kind_of(n) is InputKind.SLOT)
        forecast = next(n for n in hit.graph.nodes if n.op == "call_function")
        with hit.graph.inserting_before(forecast):
            view = hit.graph.call_method("select", (slot, 0, 0))
        view.meta["example_value"] = value_of(forecast)
        forecast.replace_all_uses_with(view)

    error = broken("insert-cache", harm, plan=planned("blocks.0"), check="fast")
    assert error.rule == "V5"
    assert "is a view of a slot" in str(error)
    assert ".select($blocks.0, 0, 0)" in str(error)


def test_v5_a_remembered_value_that_is_returned():
    def harm(graph):
        module = graph.variants[0].module
        held = next(n for n in placeholders(module.graph) if kind_of(n) is InputKind.HOISTED)
        output_node(module.graph).args = (((held,), ()),)

    error = broken("specialize", harm, check="fast")
    assert error.rule == "V5"
    assert "is a view of a hoisted value" in str(error)


def test_v6_a_predicate_from_inside(planned):
    def harm(graph):
        cond, *_ = arms(graph)
        with graph.graph.inserting_before(cond):
            inside = graph.graph.call_function(torch.sum, (cond.args[3][0],))
        region = graph.region("blocks.0")
        changed = dataclasses.replace(region, nodes=(*region.nodes, inside.name))
        cond.args = (inside, *cond.args[1:])
        rest = tuple(changed if r is region else r for r in graph.regions)
        return graph.with_(regions=rest)

    error = broken("insert-cache", harm, plan=planned("blocks.0"), check="fast")
    assert error.rule == "V6"
    assert "expected: a predicate known before its region runs" in str(error)
    assert "got: %sum" in str(error)


@pytest.mark.parametrize(
    ("op", "shown"),
    [
        (lambda g, x: g.call_function(torch.rand_like, (x,)), "rand_like"),
        (lambda g, x: g.call_method("add_", (x, 1)), "add_"),
        (lambda g, x: g.call_function(torch.relu_, (x,)), "relu_"),
        (lambda g, x: g.call_function(torch.nn.functional.silu, (x, True)), "silu"),
    ],
)
def test_v7_effects_in_a_cached_region(planned, op, shown):
    def harm(graph):
        _, _, miss = arms(graph)
        last = output_node(miss.graph)
        with miss.graph.inserting_before(last):
            made = op(miss.graph, last.args[0][0])
        made.meta["example_value"] = value_of(last.args[0][0])

    error = broken("insert-cache", harm, plan=planned("blocks.0"), check="fast")
    assert error.rule == "V7"
    assert "expected: no random draw or mutation in a cached region" in str(error)
    assert shown in str(error)


def test_v8_a_tag_that_is_too_stable():
    def harm(graph):
        graph.node("h_1").meta["depends"] = Depends.CONST

    error = broken("dependence", harm)
    assert error.rule == "V8"
    assert "got: %h_1 is tagged const, its inputs are volatile" in str(error)


def test_v8_a_prologue_that_reads_the_timestep():
    def harm(graph):
        step = graph.prologues[1]
        return graph.with_(prologues=(dataclasses.replace(step, name="condition"),))

    error = broken("hoist-invariant", harm)
    assert error.rule == "V8"
    assert "expected: a condition prologue independent of what varies" in str(error)
    assert "got: it reads %timestep, which is step" in str(error)


def test_v9_slots_over_the_budget(planned):
    def harm(graph):
        slots = tuple(dataclasses.replace(s, history=50) for s in graph.slots)
        return graph.with_(slots=slots)

    error = broken("insert-cache", harm, plan=planned("denoiser"), budget=1000)
    assert error.rule == "V9"
    assert "expected: slots within 1000 bytes" in str(error)
    assert f"got: {50 * 2 * 16 * 4 * 4} bytes" in str(error)


def test_v10_a_wait_for_the_host(planned):
    def harm(graph):
        _, _, miss = arms(graph)
        last = output_node(miss.graph)
        with miss.graph.inserting_before(last):
            miss.graph.call_method("nonzero", (last.args[0][0],))

    error = broken("insert-cache", harm, plan=planned("blocks.0"), check="fast")
    assert error.rule == "V10"
    assert "expected: no host wait in a cached region" in str(error)
    assert ".nonzero(%h_1)" in str(error)


def test_v10_reading_a_cpu_number_is_no_wait(planned):
    graph = trace(models.Residual(1).eval(), (), models.inputs(), dynamic=True)
    ctx = PassContext(plan=planned("denoiser"))
    done, _ = pipeline.run(graph, pipeline.DEFAULT, ctx, check="full")
    assert any(n.target == "item" for n in done.variants[0].module.graph.nodes)


def test_v11_a_plan_with_a_row_missing(planned):
    def change(plan):
        region = plan.regions[0]
        short = dataclasses.replace(region, weights=region.weights[:-1])
        return dataclasses.replace(plan, regions=(short,))

    error = broken("plan", nothing, plan=planned("blocks.0"), change=change)
    assert error.rule == "V11"
    assert "expected: a row for each of 4 steps" in str(error)
    assert "got: blocks.0: 3 rows" in str(error)


def test_v11_a_step_that_does_neither(planned):
    def change(plan):
        region = plan.regions[0]
        rows = (*region.weights[:-1], (0.0,))
        return dataclasses.replace(plan, regions=(dataclasses.replace(region, weights=rows),))

    error = broken("plan", nothing, plan=planned("blocks.0"), change=change)
    assert error.rule == "V11"
    assert "got: blocks.0 neither computes nor forecasts step 3" in str(error)


def test_every_rule_has_its_breaking_test():
    files = Path(__file__).parent.glob("test_verifier*.py")
    tested = {rule for f in files for rule in re.findall(r"^def test_(v\d+)_", f.read_text(), re.M)}
    assert {rule.lower() for rule in RULES} == tested


def test_a_sound_graph_breaks_no_rule(planned):
    graph = trace(models.Residual(2).eval(), (), models.inputs())
    ctx = PassContext(plan=planned("blocks.0", "blocks.1", history=2, computed=(0, 1, 4), steps=8))
    done, _ = pipeline.run(graph, pipeline.DEFAULT, ctx, check="full")
    verify(done, ctx, "cleanup", recompute=True)
