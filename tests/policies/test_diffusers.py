"""Policies on small models of diffusers: against loops by hand, and against diffusers' own hook."""

from __future__ import annotations

import ditcache
import pytest
import torch
from ditcache.passes.policies import make

from ..runtime.helpers import compiled, euler, grid
from . import loops
from .models import STEPS, replaced, subject_of

diffusers = pytest.importorskip("diffusers")
TOKENS = 16  # text and image of one length: only dataflow tells them apart


def flux():
    torch.manual_seed(4)
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8), guidance_embeds=False,
    )  # fmt: skip
    return model.requires_grad_(False).eval()


def unet():
    torch.manual_seed(5)
    model = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 16), layers_per_block=1, cross_attention_dim=12,
        attention_head_dim=2, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return model.requires_grad_(False).eval()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run_flux(model, seed=0, at=lambda i: None):
    ids = torch.zeros(TOKENS, 3)
    ids[:, 1] = torch.arange(TOKENS)
    text = {
        "encoder_hidden_states": normal(1, TOKENS, 12, seed=seed + 10),
        "pooled_projections": normal(1, 8, seed=seed + 20),
        "img_ids": ids, "txt_ids": torch.zeros(TOKENS, 3), "return_dict": False,
    }  # fmt: skip

    def forward(x, t, i):
        at(i)
        return model(hidden_states=x, timestep=t.expand(1), **text)[0]

    return euler(forward, normal(1, TOKENS, 4, seed=seed), grid(STEPS))


def run_unet(model, seed=0, at=lambda i: None):
    text = normal(1, 6, 12, seed=seed + 10)

    def forward(x, t, i):
        at(i)
        return model(x, (1000 * t).expand(1), text, return_dict=False)[0]

    return euler(forward, normal(1, 4, 8, 8, seed=seed), grid(STEPS))


def under(model, loop, policy, timesteps=None, **options):
    """One generation under a policy, and how many matrix products of each module ran."""
    made = compiled(model, policy="none")
    loop(made, 9)
    plan = make(policy, options).plan(subject_of(made, timesteps))
    ditcache.apply(made, plan)
    result = loop(made)
    assert not ditcache.summary(made).fallbacks
    return result, ditcache.summary(made)


def check(ours, theirs, uncached, tolerance=0.0):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert (ours - uncached).abs().max() > 1e-4, "nothing was skipped"


def by_layers(model, loop, modules, computes, order=0):
    now = loops.Now()
    with replaced(*[(m, loops.Layer(now, computes, order)) for m in modules]):
        return loop(model, at=now)


def test_fora_on_flux_keeps_what_its_modules_give():
    model = flux()
    ours, _ = under(model, run_flux, "fora", interval=3)
    modules = [m for b in model.transformer_blocks for m in (b.attn, b.ff, b.ff_context)]
    modules += [b.proj_out for b in model.single_transformer_blocks]
    theirs = by_layers(model, run_flux, modules, lambda i: i % 3 == 0)
    check(ours, theirs, run_flux(model))


@pytest.mark.parametrize("threshold", [0.25])
def test_first_block_cache_is_what_diffusers_own_hook_does(threshold):
    model = flux()
    uncached = run_flux(model)
    ours, summary = under(model, run_flux, "firstblockcache", threshold=threshold)
    model.enable_cache(diffusers.FirstBlockCacheConfig(threshold=threshold))
    with model.cache_context("one"):
        theirs = run_flux(model)
    model.disable_cache()
    check(ours, theirs, uncached)
    assert 1 < summary.computed - STEPS < STEPS  # the first generation was uncached


def test_partial_on_flux_crosses_from_double_to_single_blocks():
    model = flux()
    ours, _ = under(model, run_flux, "partial", front=1, back=1, order=0, interval=4, first=2)
    first, last = model.transformer_blocks[1], model.single_transformer_blocks[1]
    middle = [first, model.single_transformer_blocks[0], last]
    now, state = loops.Now(), {}

    def patch(block):
        def call(forward, *args, hidden_states, encoder_hidden_states, **kwargs):
            if block is first:
                state["in"] = (encoder_hidden_states, hidden_states)
            if now.step in {0, 1, 5, 9}:
                out = forward(
                    *args, hidden_states=hidden_states,
                    encoder_hidden_states=encoder_hidden_states, **kwargs,
                )  # fmt: skip
                if block is last:
                    state["delta"] = [o - i for o, i in zip(out, state["in"], strict=True)]
                return out
            if block is last:
                return tuple(i + d for i, d in zip(state["in"], state["delta"], strict=True))
            return encoder_hidden_states, hidden_states

        return block, call

    with replaced(*map(patch, middle)):
        theirs = run_flux(model, at=now)
    check(ours, theirs, run_flux(model))


@pytest.mark.parametrize("region", ["deep", "blocks[1:8]"])
def test_deepcache_on_a_unet_equals_its_loop(region):
    # "deep" ends at the last up block in a model this small; the run leaves the outer pair fresh.
    model = unet()
    times = (1000 * grid(STEPS)).tolist()
    ours, summary = under(model, run_unet, "deepcache", times, interval=3, region=region)
    kept = model.up_blocks[2 if region == "deep" else 1]
    theirs = by_layers(model, run_unet, [kept], lambda i: i % 3 == 0)
    check(ours, theirs, run_unet(model))
    assert summary.forecast == STEPS - 4


@pytest.mark.slow
def test_policies_run_compiled_by_inductor():
    for name, options in (("fora", {}), ("firstblockcache", {"threshold": 0.25})):
        ours_eager, eager = under(flux(), run_flux, name, **options)
        model = flux()  # one's own: what is compiled of one model shares its session
        made = compiled(model, policy="none", inner="inductor")
        run_flux(made, 9)
        ditcache.apply(made, make(name, options).plan(subject_of(made)))
        check(run_flux(made), ours_eager, run_flux(model), 1e-5)
        summary = ditcache.summary(made)
        assert summary.forecast == eager.forecast > 0
        assert not summary.fallbacks
