"""plan, insert-cache, hoist-invariant, specialize and cleanup."""

from __future__ import annotations

import pytest
import torch
import toy_models as models
from ditcache.passes.base import PassError
from torch import nn


def test_plan_shows_which_steps_compute(filecheck, lowered, planned):
    plan = planned("denoiser", computed=(0, 1, 5), steps=8)
    filecheck(
        lowered(models.Residual(1), models.inputs(), "plan", plan=plan),
        """
        CHECK: region denoiser {{.*}}, scheduled CC...C..
        CHECK: region @blocks.0 {{.*}} 12 ops{{$}}
        """,
    )


@pytest.mark.parametrize(
    ("model", "regions", "message"),
    [
        (models.Residual(1), ["blocks.7"], "no region 'blocks.7'.*the plan is for another model"),
        (models.Residual(1), ["denoiser", "blocks.0"], "overlap at %.*schedule only one"),
        (models.Residual(1), ["blocks.0", "blocks.0.mlp"], "blocks.0 and blocks.0.mlp overlap"),
    ],
)
def test_plan_invalid(lowered, planned, model, regions, message):
    with pytest.raises(PassError, match=message):
        lowered(model, models.inputs(), "plan", plan=planned(*regions))


@pytest.mark.parametrize(
    ("model", "region", "message"),
    [
        (models.Noisy(), "denoiser", "cannot be cached: it draws random numbers"),
        (models.Autocast(), "blocks.0", "cuts through an autocast range"),
        (models.Tangled(), "chain.0.attn", "flows back into it"),
    ],
)
def test_plan_invalid_region(lowered, planned, model, region, message):
    with pytest.raises(PassError, match=message):
        lowered(model, models.wide(), "plan", plan=planned(region))


def test_a_scheduled_region_becomes_a_conditional(filecheck, lowered, planned):
    text = lowered(
        models.Residual(1),
        models.inputs(),
        "insert-cache",
        plan=planned("blocks.0.mlp", history=2),
    )
    filecheck(
        text,
        """
        CHECK:      graph @Residual({{.*}}$blocks.0.mlp, %plan_blocks_0_mlp: i1 host,
        CHECK-SAME: %weights_blocks_0_mlp: f32[2] weights
        CHECK:      slot $blocks.0.mlp : f32[2,16,8] x2  2.0 KiB
        CHECK:      %x = add(%h, %linear_6)
        CHECK-NEXT: %cache_cond = cache.cond %plan_blocks_0_mlp $blocks.0.mlp {
        CHECK-NEXT:   hit:
        CHECK-NEXT:     %[[F:.*]] = cache.forecast $blocks.0.mlp, %weights_blocks_0_mlp
        CHECK-NEXT:     yield (%[[F]],)
        CHECK-NEXT:   miss:
        CHECK-NEXT:     %layer_norm_1 = layer_norm(%x,
        CHECK:          %input_3 = linear(
        CHECK-NEXT:     cache.write $blocks.0.mlp, %input_3
        CHECK-NEXT:     yield (%input_3,)
        CHECK-NEXT: }
        CHECK-NEXT: %[[PART:.*]] = getitem(%cache_cond, 0)
        CHECK-NEXT: %h_1 = add(%x, %[[PART]])
        """,
    )


def test_two_live_outs_make_two_slots(filecheck, lowered, planned):
    arguments = {**models.inputs(), "hidden_states": models.wide()[0]}
    text = lowered(models.Joint(), arguments, "insert-cache", plan=planned("transformer_blocks.0"))
    filecheck(
        text,
        """
        CHECK: slot $transformer_blocks.0.0 : f32[2,16,8] x1
        CHECK: slot $transformer_blocks.0.1 : f32[2,7,8] x1
        CHECK: hit:
        CHECK: cache.forecast $transformer_blocks.0.0, %weights_transformer_blocks_0
        CHECK: cache.forecast $transformer_blocks.0.1, %weights_transformer_blocks_0
        CHECK: miss:
        CHECK: cache.write $transformer_blocks.0.0, %x_2
        CHECK: cache.write $transformer_blocks.0.1, %context_1
        """,
    )


def test_insert_cache_invalid_budget(lowered, planned):
    plan = planned("denoiser")
    with pytest.raises(PassError, match="slots need 512 bytes, the budget is 511; raise slot_budg"):
        lowered(models.Residual(1), models.inputs(), "insert-cache", plan=plan, slot_budget=511)


def test_recording_writes_one_value_into_each_slot_that_wants_it(filecheck, lowered):
    # The last block's result is the denoiser's: both are recorded.
    arguments = {**models.inputs(), "hidden_states": models.wide()[0]}
    filecheck(
        lowered(models.Joint(), arguments, "specialize", record=("denoiser", "block")),
        """
        CHECK: variant 0 (compute) writes
        CHECK-SAME: $transformer_blocks.0.0
        CHECK-SAME: $transformer_blocks.0.1
        CHECK-SAME: $denoiser
        CHECK-SAME: $transformer_blocks.1
        CHECK: yield ((%x_4,), (%x_2, %context_1, %x_4, %x_4))
        """,
    )


class Flip(nn.Module):
    """A block whose result is not contiguous."""

    def forward(self, h):
        return (h * 2).transpose(1, 2) + 1


class Flipped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Flip()])

    def forward(self, x, t):
        return self.layers[0](x) * t[:, None, None]


def test_a_forecast_has_the_traced_layout(filecheck, lowered, planned):
    # [2,8,16] laid out as [2,16,8]: what was traced after the region may rely on it.
    filecheck(
        lowered(Flipped(), models.wide(), "cleanup", plan=planned("layers.0")),
        """
        CHECK:      variant 1 (layers.0: forecast)
        CHECK-NEXT: %cache_forecast = cache.forecast $layers.0, %weights_layers_0 : f32[2,8,16]
        CHECK-NEXT: %relayout = relayout(%cache_forecast, (128, 1, 8)) : f32[2,8,16]
        """,
    )


def test_work_without_latents_moves_to_prologues(filecheck, lowered):
    filecheck(
        lowered(models.Residual(1), models.inputs(), "hoist-invariant"),
        """
        CHECK:      graph @Residual(%hidden_states: f32[2,16,4] latents, %k: f32[2,7,8] hoisted
        CHECK-NOT:  %timestep
        CHECK:      prologue condition -> %k, %v
        CHECK-NEXT:   %k = linear(%text, @blocks.0.attn.k.weight
        CHECK-NEXT:   %v = linear(%text, @blocks.0.attn.v.weight
        CHECK-NEXT:   yield (%k, %v)
        CHECK:      prologue step -> %linear_2, %add
        CHECK:        %linear_2 = linear(%emb, @blocks.0.modulation.weight
        CHECK:      %shift = getitem(%chunk, 1)
        CHECK:      scaled_dot_product_attention(%q, %k, %v)
        """,
    )


def test_what_the_step_returns_is_never_the_remembered_value(filecheck, lowered):
    filecheck(
        lowered(models.TupleOutput(), models.wide(), "hoist-invariant"),
        """
        CHECK: prologue step -> %emb
        CHECK: %clone = .clone(%emb)
        CHECK: return ({{.*}}%clone{{.*}})
        """,
    )


def test_views_of_inputs_are_repeated_rather_than_remembered(lowered):
    class Broadcast(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(8, 8)

        def forward(self, x, t):
            return self.lin(x) * torch.broadcast_to(t[:, None, None], (2, 16, 8))

    graph = lowered(Broadcast(), models.wide(), "hoist-invariant", text=False)
    assert not graph.prologues


def test_autocast_ranges_are_not_hoisted(lowered):
    graph = lowered(models.Autocast(), models.wide(), "hoist-invariant", text=False)
    assert not graph.prologues


def test_a_variant_for_each_choice_in_the_plan(filecheck, lowered, planned):
    plan = planned("blocks.0", "blocks.1")
    filecheck(
        lowered(models.Residual(2), models.inputs(), "specialize", plan=plan),
        """
        CHECK:     variant 0 (blocks.0: compute, blocks.1: compute) writes $blocks.0 $blocks.1
        CHECK:     yield ((%linear_16,), (%h_1, %h_2))
        CHECK:     variant 1 (blocks.0: forecast, blocks.1: forecast)  //
        CHECK-NEXT: %[[F:.*]] = cache.forecast $blocks.1, %weights_blocks_1
        CHECK-NEXT: %linear_16 = linear(%[[F]], @out.weight, @out.bias)
        CHECK-NEXT: yield ((%linear_16,), ())
        CHECK-NOT: variant 2
        """,
    )


def test_cleanup_merges_equal_and_drops_dead(filecheck, lowered):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Linear(8, 8)

        def forward(self, x, t):
            a, b = self.q(x), self.q(x)
            torch.relu(a)
            return (a + b) * t[:, None, None]

    filecheck(
        lowered(Twice(), models.wide(), "cleanup"),
        """
        CHECK:      return
        CHECK:      variant 0
        CHECK-NEXT: %[[Q:.*]] = linear(%x, @q.weight, @q.bias)
        CHECK-NEXT: %add = add(%[[Q]], %[[Q]])
        CHECK-NOT:  relu
        """,
    )


def test_cleanup_keeps_what_only_looks_equal(lowered):
    class Alike(nn.Module):
        def forward(self, x, t):
            drawn = torch.rand_like(x) + torch.rand_like(x)
            by_int, by_float = x.float().pow(2), x.float().pow(2.0)
            return drawn, by_int * 1, by_float * 1.0, x * t[:, None, None]

    graph = lowered(Alike(), models.wide(), "cleanup", text=False)
    names = [str(n.target) for n in graph.graph.nodes]
    assert sum("rand_like" in n for n in names) == 2
    assert names.count("pow") == 2


def test_equal_results_stay_in_separate_memory(lowered):
    class Pair(nn.Module):
        def forward(self, x, t):
            return x * t[:, None, None], x * t[:, None, None]

    graph = lowered(Pair(), models.wide(), "cleanup", text=False)
    for module in (graph.module, graph.variants[0].module):
        with torch.no_grad():
            leaves = torch.utils._pytree.tree_leaves(module(*reversed(models.wide())))
        assert leaves[0].data_ptr() != leaves[1].data_ptr()


def test_draws_stay_in_order_around_a_region_that_moves(lowered, planned):
    """The region waits for `late`, so what stands between would like to overtake the first draw."""

    from ditcache.passes.grouping import ordered_groups
    from ditcache.passes.ir import Region
    from torch import fx

    graph = fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_function(torch.sin, (x,))
    one = graph.call_function(torch.rand_like, (a,))
    two = graph.call_function(torch.randn_like, (x,))
    late = graph.call_function(torch.cos, (x,))
    b = graph.call_function(torch.add, (a, late))
    graph.output((b, one, two))
    region = Region("r", "block", "r", (a.name, b.name), (), ())
    groups = ordered_groups(graph, {a.name: region, b.name: region})
    order = [n for group in groups for n in group]
    assert order.index(one) < order.index(two)
    assert order.index(b) == order.index(a) + 1
