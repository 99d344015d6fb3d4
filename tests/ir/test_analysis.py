"""classify-inputs, dependence, form-regions and tag-stability."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toy_models as models
from ditcache.passes import pipeline
from ditcache.passes.base import PassContext, PassError
from ditcache.passes.trace import trace
from torch import nn


def test_inputs_are_classified_by_source_name_and_shape(filecheck, lowered):
    filecheck(
        lowered(models.Residual(1), models.inputs(), "classify-inputs"),
        """
        CHECK: graph @Residual(
        CHECK-SAME: %timestep: f32[2] timestep, %hidden_states: f32[2,16,4] latents,
        CHECK-SAME: %text: f32[2,7,8] condition, 22 parameters)
        """,
    )


def test_the_user_may_say_what_an_input_is(filecheck, lowered):
    text = lowered(
        models.Residual(1),
        models.inputs(),
        "dependence",
        roles={"text": "latents", "hidden_states": "condition"},
    )
    filecheck(
        text,
        """
        CHECK-DAG: %hidden_states: f32[2,16,4] condition
        CHECK-DAG: %text: f32[2,7,8] latents
        CHECK: %h = linear(%hidden_states, {{.*}} [condition]
        """,
    )


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"prompt": "condition"}, "no such input; it has .*hidden_states"),
        ({"text": "weights"}, "expected one of latents, timestep, condition, parameter"),
    ],
)
def test_classify_inputs_invalid(lowered, roles, message):
    with pytest.raises(PassError, match=message):
        lowered(models.Residual(1), models.inputs(), "classify-inputs", roles=roles)


def test_dependence_is_the_join_of_the_inputs(filecheck, lowered):
    filecheck(
        lowered(models.Residual(1), models.inputs(), "dependence"),
        """
        CHECK: %emb = linear(%getitem, @time.weight, @time.bias) : f32[2,8] @time [step]
        CHECK: %h = linear(%hidden_states, @proj.weight, @proj.bias) : f32[2,16,8] @proj{{$}}
        CHECK: %add = add(1, %scale) : f32[2,1,8] @blocks.0 [step]
        CHECK: %k = linear(%text, {{.*}}) : f32[2,7,8] @blocks.0.attn.k [condition]
        CHECK: scaled_dot_product_attention(%q, %k, %v) : f32[2,16,8] @blocks.0{{$}}
        """,
    )


def test_an_autocast_range_is_one_unit(filecheck, lowered):
    # The time embedding depends on the timestep alone, and so do the marks around it.
    filecheck(
        lowered(models.Autocast(), models.wide(), "dependence"),
        """
        CHECK: %_enter_autocast = _enter_autocast(cpu, bf16, True, None) [step]
        CHECK: %_exit_autocast = _exit_autocast(%_enter_autocast) [step]
        CHECK: %_enter_autocast_1 = _enter_autocast(cpu, bf16, True, None){{$}}
        """,
    )


def test_random_draws_depend_on_everything(lowered):
    graph = lowered(models.Noisy(), models.wide(), "dependence", text=False)
    from ditcache.passes.ir import depends_of

    assert depends_of(graph.node("randn")).stability == "volatile"


def test_regions_of_a_residual_chain(filecheck, lowered):
    filecheck(
        lowered(models.Residual(2), models.inputs(), "form-regions"),
        """
        CHECK:      region denoiser (%hidden_states, {{.*}}) -> (%linear_16) [volatile]  // denoiser
        CHECK-NEXT: region @blocks.0 (%h, {{.*}}) -> (%h_1) [volatile]  // block
        CHECK-NEXT: region @blocks.0.attn (%h, {{.*}}) -> (%linear_6) {{.*}} cross-attention
        CHECK-NEXT: region @blocks.0.mlp (%x) -> (%input_3) {{.*}} // mlp branch, 8.19 kMAC, 4 ops
        CHECK-NEXT: region @blocks.1 (%h_1, {{.*}}) -> (%h_2) [volatile]  // block
        """,
    )


def test_blocks_that_carry_two_streams_have_two_live_outs(filecheck, lowered):
    arguments = {**models.inputs(), "hidden_states": models.wide()[0]}
    filecheck(
        lowered(models.Joint(), arguments, "form-regions"),
        """
        CHECK: region @transformer_blocks.0 (%text, %x) -> (%x_2, %context_1) [volatile]  // block
        CHECK: region @transformer_blocks.1 (%context_1, %x_2) -> (%x_4) [volatile]  // block
        CHECK: region @transformer_blocks.1.ff_context (%context_2) -> (%linear_5)
        """,
    )


def test_the_deep_part_of_a_unet_lies_between_its_skips(filecheck, lowered):
    arguments = (torch.randn(2, 4, 8, 8), models.wide()[1])
    filecheck(
        lowered(models.UNet(), arguments, "form-regions"),
        """
        CHECK: region deep (%skip, %getitem_1) -> (%conv2d_8) [volatile]  // deep, 516 kMAC, 21 ops
        """,
    )


def test_batched_guidance_is_inside_the_denoiser(filecheck, lowered):
    arguments = {**models.inputs(), "text": torch.randn(4, 7, 8)}
    filecheck(
        lowered(models.Guided(), arguments, "form-regions"),
        """
        CHECK: region denoiser (%hidden_states, {{.*}}) -> (%add_8) [volatile]  // denoiser
        CHECK: region @blocks.1 ({{.*}}) -> (%h_2)
        CHECK: %chunk_2 = .chunk(%linear_16, 2) : (f32[2,16,4], f32[2,16,4])
        """,
    )


def test_regions_that_cannot_be_cached_say_why(filecheck, lowered):
    filecheck(
        lowered(models.Noisy(), models.wide(), "form-regions"),
        """
        CHECK: region denoiser {{.*}}, not cacheable: it draws random numbers (randn)
        """,
    )
    filecheck(
        lowered(models.Autocast(), models.wide(), "form-regions"),
        """
        CHECK: region @blocks.0 {{.*}}, not cacheable: its border cuts through an autocast range
        """,
    )
    filecheck(
        lowered(models.Tangled(), models.wide(), "form-regions"),
        """
        CHECK: region @chain.0.attn {{.*}} not cacheable: its result flows back into it through x_1
        """,
    )


def test_a_slice_of_a_neighbours_result_stays_with_its_own_block(lowered):
    """Blocks that cut a part out of the last block's result must not overlap with it."""

    class Cut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(8, 8)

        def forward(self, h):
            return torch.cat([h[:, :4], h[:, 4:] + self.lin(h[:, 4:])], 1)

    class Chain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList(Cut() for _ in range(2))

        def forward(self, x, t):
            h = x * t[:, None, None]
            for block in self.blocks:
                h = block(h)
            return h

    graph = lowered(Chain(), models.wide(), "form-regions", text=False)
    first, second = (set(graph.region(f"blocks.{i}").nodes) for i in range(2))
    assert first
    assert not first & second


def test_drift_is_shown_where_a_profile_measured_it(filecheck, lowered, profile_of):
    outputs = np.stack([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2]])
    text = lowered(
        models.Residual(1), models.inputs(), "tag-stability", profile=profile_of(outputs)
    )
    filecheck(
        text,
        """
        CHECK: region denoiser {{.*}} [stable d=0.
        CHECK: region @blocks.0 {{.*}} [volatile]
        """,
    )


def test_a_raised_autocast_range_raises_the_next_as_a_whole(lowered):
    """The first range mixes time and latents; all of the second, which reads it, is latent."""

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.time = torch.nn.Linear(1, 8)
            self.more = torch.nn.Linear(8, 8)
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(8, 8)])

        def forward(self, x, t):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                emb = self.time(t[:, None])
                h = self.blocks[0](x)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                emb = self.more(emb)
            return h.float() * emb[:, None].float()

    from ditcache.passes.dependence import autocast_ranges
    from ditcache.passes.ir import depends_of

    graph = lowered(Two(), models.wide(), "form-regions", text=False)
    ranges = autocast_ranges(graph.graph)
    assert len(ranges) == 2
    assert {depends_of(n).stability for group in ranges for n in group} == {"volatile"}
    assert graph.region("denoiser").refusal is None


def test_work_inside_a_higher_order_op_counts(lowered):
    class Checkpointed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(8, 8)])

        def forward(self, x, t):
            h = torch.utils.checkpoint.checkpoint(self.blocks[0], x, use_reentrant=False)
            return h * t[:, None, None]

    graph = lowered(Checkpointed(), models.wide(), "cleanup", text=False)
    assert graph.region("denoiser").macs == 2 * 16 * 8 * 8


def test_branches_are_found_where_the_stream_is_added_in_fp32(filecheck, lowered):
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = torch.nn.Linear(8, 8, dtype=torch.bfloat16)
            self.ffn = torch.nn.Linear(8, 8, dtype=torch.bfloat16)

        def forward(self, h, gate):
            h = (h.float() + self.attn(h) * gate).type_as(h)
            return (h.float() + self.ffn(h) * gate).type_as(h)

    class Wanlike(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([Block()])

        def forward(self, x, t):
            return self.blocks[0](x.to(torch.bfloat16), t[:, None, None])

    filecheck(
        lowered(Wanlike(), models.wide(), "form-regions"),
        """
        CHECK: region @blocks.0 ({{.*}}// block
        CHECK-NEXT: region @blocks.0.attn (%to) -> (%linear) {{.*}} // mlp branch, 2.05 kMAC
        CHECK-NEXT: region @blocks.0.ffn (%h) -> (%linear_1) {{.*}} // mlp branch, 2.05 kMAC
        """,
    )


class Uncast(nn.Module):
    """A block that leaves autocast for its rotation, as many attention layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, t):
        h = self.up(x) * t[:, None]
        with torch.autocast("cpu", enabled=False):
            h = torch.view_as_complex(h.float().reshape(-1, 4, 2)) * 1j
        return x + self.down(torch.view_as_real(h).reshape(-1, 8))


def test_an_autocast_range_inside_a_block_does_not_cut_it():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Uncast() for _ in range(3))

        def forward(self, x, timestep):
            for block in self.blocks:
                x = block(x, timestep)
            return x

    graph = trace(Model(), (torch.randn(3, 8), torch.ones(3)))
    done, _ = pipeline.run(graph, pipeline.ANALYSIS, PassContext())
    blocks = [r for r in done.regions if r.kind == "block"]
    assert [(r.name, r.refusal) for r in blocks] == [(f"blocks.{i}", None) for i in range(3)]
    assert all(r.refusal is None for r in done.regions if r.kind == "branch")
