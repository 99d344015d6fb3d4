"""Runs of blocks, deltas, roles of branches, and decisions by probe, in the IR."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import toy_models as models
from ditcache.passes.base import PassError
from ditcache.passes.plan_format import DecisionRule, ProbePoint
from ditcache.passes.selectors import Outline, outline, resolve

EQUAL = {**models.inputs(tokens=7), "hidden_states": torch.zeros(2, 7, models.D)}


def with_(plan, what="delta", rule=None):
    regions = tuple(dataclasses.replace(r, what=what) for r in plan.regions)
    return dataclasses.replace(plan, regions=regions, rule=rule).validate()


def rule(*probes, threshold=0.1):
    return DecisionRule("dbcache", (("threshold", threshold),), probes)


def test_a_run_of_blocks_is_formed_on_demand(filecheck, lowered, planned):
    text = lowered(models.Residual(4), models.inputs(), "plan", plan=planned("blocks[1:-1]"))
    filecheck(
        text,
        """
        CHECK:     region @blocks.1 (%h_1
        CHECK:     region @blocks.2 {{.*}} -> (%h_3)
        CHECK:     region blocks[1:-1] (%h_1, {{.*}} -> (%h_3) [volatile]  // run, {{.*}} C.C.
        """,
    )


def test_roles_are_read_off_the_ops(lowered):
    graph = lowered(models.Residual(2), models.inputs(), "form-regions", text=False)
    assert outline(graph) == Outline(2, ("cross-attention", "mlp"), False) or outline(graph).deep
    assert [r.name for r in resolve(graph, "mlp[1:]")] == ["blocks.1.mlp"]
    both = [r.name for r in resolve(graph, "cross-attention[:1]+mlp[:1]")]
    assert both == ["blocks.0.attn", "blocks.0.mlp"]
    joint = lowered(models.Joint(), EQUAL, "form-regions", text=False)
    assert outline(joint).roles == ("attention", "mlp")


def test_branches_of_a_role_share_one_schedule(filecheck, lowered, planned):
    plan = planned("cross-attention[:]")
    filecheck(
        lowered(models.Residual(2), models.inputs(), "specialize", plan=plan),
        """
        CHECK: region @blocks.0.attn {{.*}} scheduled by cross-attention[:] C.C.
        CHECK: region @blocks.1.attn {{.*}} scheduled by cross-attention[:] C.C.
        CHECK: cache.cond %plan_cross_attention___ $blocks.0.attn {
        CHECK: cache.cond %plan_cross_attention___ $blocks.1.attn {
        CHECK: variant 0 (cross-attention[:]: compute) writes $blocks.0.attn $blocks.1.attn
        CHECK: variant 1 (cross-attention[:]: forecast)  //
        """,
    )


def test_a_delta_is_written_and_added_back(filecheck, lowered, planned):
    plan = with_(planned("blocks[0:2]"))
    filecheck(
        lowered(models.Residual(2), models.inputs(), "insert-cache", plan=plan),
        """
        CHECK:      slot $blocks[0:2] : f32[2,16,8] x1  {{.*}} // delta
        CHECK:      cache.cond %plan_blocks_0_2_ $blocks[0:2] {
        CHECK-NEXT:   hit:
        CHECK-NEXT:     %cache_forecast = cache.forecast $blocks[0:2], %weights_blocks_0_2_, %h :
        CHECK-NEXT:     yield (%cache_forecast,)
        CHECK:          %sub = sub(%h_2, %h)
        CHECK-NEXT:     cache.write $blocks[0:2], %sub
        CHECK-NEXT:     yield (%h_2,)
        """,
    )


def test_streams_of_equal_length_are_paired_by_dataflow(filecheck, lowered, planned):
    plan = with_(planned("transformer_blocks.0"))
    filecheck(
        lowered(models.Joint(), EQUAL, "insert-cache", plan=plan),
        """
        CHECK-DAG: cache.forecast {{.*}}, %x : f32[2,7,8]
        CHECK-DAG: cache.forecast {{.*}}, %text : f32[2,7,8]
        CHECK:     sub(%x_2, %x)
        CHECK:     sub(%context_1, %text)
        """,
    )


class Single(torch.nn.Module):
    """A chain in which text and image are joined, added to as one, and taken apart again."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(SingleBlock() for _ in range(2))

    def forward(self, hidden_states, timestep, text):
        x, context = hidden_states * timestep[:, None, None], text
        for block in self.blocks:
            context, x = block(context, x)
        return torch.cat([context, x], 1)


class SingleBlock(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.ff = torch.nn.Linear(models.D, models.D)

    def forward(self, context, x):
        n = context.shape[1]
        both = torch.cat([context, x], 1)
        both = both + self.ff(both)
        return both[:, :n], both[:, n:]


@pytest.mark.parametrize("tokens", [7, 16])
def test_streams_are_followed_through_slices_and_concatenations(lowered, planned, tokens):
    from ditcache.passes.roles import partners

    shape = {**models.inputs(), "hidden_states": torch.zeros(2, tokens, models.D)}
    graph = lowered(Single(), shape, "form-regions", text=False)
    (run,) = resolve(graph, "blocks[:]")
    pairs = partners(graph, run)
    assert set(pairs.values()) == {"x", "text"}
    sizes = {out: graph.node(out).meta["example_value"].shape[1] for out in pairs}
    assert sizes == {out: 7 if made == "text" else tokens for out, made in pairs.items()}
    assert len(run.live_outs) == 2


def test_a_decision_makes_a_head_and_two_tails(filecheck, lowered, planned):
    plan = with_(planned("blocks[1:]", computed=(0,)), rule=rule(ProbePoint("blocks[0:1] delta")))
    text = lowered(models.Residual(3), models.inputs(), "specialize", plan=plan)
    filecheck(
        text,
        """
        CHECK:      slot $blocks[1:] : f32[2,16,8] x1  {{.*}} // delta
        CHECK-NEXT: slot $probe.0 : f32[2,16,8] x1  {{.*}} // delta, computed step
        CHECK:      region blocks[1:] {{.*}} scheduled C???
        CHECK:      %sub = sub(%h_1, %h)
        CHECK-NEXT: %cache_probe = cache.probe %sub, $probe.0 : f32[2]
        CHECK-NEXT: %cache_decide = cache.decide 0.1, %cache_probe : i1 host probe
        CHECK:      cache.cond %cache_decide $blocks[1:] $probe.0 {
        CHECK:          cache.write $blocks[1:], %sub
        CHECK-NEXT:     cache.write $probe.0, %sub
        CHECK:      variant 0 (blocks[1:]: compute) writes $blocks[1:] $probe.0
        CHECK:      variant 1 (head)
        CHECK:        %h_1 = add(
        CHECK:        yield ((%cache_probe,), (%h_1, %sub))
        CHECK:      variant 2 (tail, blocks[1:]: compute) writes $blocks[1:] $probe.0
        CHECK-NOT:    @blocks.0
        CHECK:      variant 3 (tail, blocks[1:]: forecast)  //
        CHECK-NEXT:   cache.forecast $blocks[1:], %{{.*}}, %h_1 : f32[2,16,8]
        """,
    )


def test_what_decides_is_taken_out_of_the_region(filecheck, lowered, planned):
    plan = with_(
        planned("blocks[:]", computed=(0,)), rule=rule(ProbePoint("modulated", "previous"))
    )
    text = lowered(models.Residual(2), models.inputs(), "insert-cache", plan=plan)
    filecheck(
        text,
        """
        CHECK:      %layer_norm = layer_norm(
        CHECK:      %[[M:add.*]] = add({{.*}} : f32[2,16,8] @blocks.0
        CHECK-NEXT: %cache_probe = cache.probe %[[M]], $probe.0
        CHECK-NEXT: cache.write $probe.0, %[[M]]
        CHECK:      miss:
        CHECK-NOT:  %layer_norm = layer_norm(
        CHECK:      yield
        """,
    )


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (
            "blocks[2:]",
            "names no region of this model, which has 2 blocks; roles .* cross-attention",
        ),
        ("attention[:]", "names no region of this model"),
        ("blocks[:]+mlp[:]", r"regions blocks\[:\] and blocks.0.mlp overlap"),
        ("blocks[0:1", "no region 'blocks.0:1'; this graph has: denoiser"),
    ],
)
def test_selectors_invalid(lowered, planned, region, message):
    with pytest.raises(PassError, match=message):
        lowered(models.Residual(2), models.inputs(), "plan", plan=planned(region))


def test_a_delta_without_a_stream_is_refused(lowered, planned):
    with pytest.raises(PassError, match=r"no residual stream leads .* plan its .output. instead"):
        lowered(
            models.Residual(1), models.inputs(), "insert-cache", plan=with_(planned("blocks.0.mlp"))
        )


def test_a_probe_that_the_model_lacks_is_refused(lowered, planned):
    for point, message in (("depth", "no probe 'depth'"), ("blocks[5:] delta", "names no region")):
        plan = with_(planned("blocks[1:]", computed=(0,)), rule=rule(ProbePoint(point)))
        with pytest.raises(PassError, match=message):
            lowered(models.Residual(2), models.inputs(), "plan", plan=plan)
