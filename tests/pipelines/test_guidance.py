"""Guidance in all the forms in which pipelines call the denoiser."""

from __future__ import annotations

import ditcache
import pytest
import torch

from . import tiny_pipelines as tiny
from .observing import (
    by_hand,
    close,
    compiled,
    error,
    follows,
    own_plan,
    planned,
    uncached,
    watched,
)


def test_sequential_guidance_with_named_branches_is_planned_at_its_scale():
    pipeline = tiny.flux()
    made, plan = planned(pipeline)
    assert plan.guidance == pytest.approx(2.0, abs=0.01)
    follows(pipeline, plan, branches=2, seed=1)
    assert ditcache.summary(made).fallbacks == {}


def test_batched_guidance_is_known_by_the_latents_two_halves():
    pipeline = tiny.sd3()
    made = compiled(pipeline)
    profile = ditcache.calibrate(
        made, lambda i: tiny.generate(pipeline, i, guidance_scale=3.0), samples=2
    )
    assert profile.branches == ("cond", "uncond")
    assert profile.guidance == pytest.approx(3.0, abs=0.01)
    assert profile.regions[0].gram.shape == (2, 2, 8, 8)
    plan = profile.plan(speedup=2.0)
    ditcache.apply(made, plan)
    follows(pipeline, plan, seed=7, guidance_scale=3.0)


def test_without_guidance_a_batch_of_two_is_two_samples():
    pipeline = tiny.sd3()
    made = compiled(pipeline)
    profile = ditcache.calibrate(
        made, lambda i: tiny.generate(pipeline, i, batch=2, guidance_scale=1.0), samples=1
    )
    assert (profile.branches, profile.guidance) == (("",), None)


def test_two_samples_from_equal_noise_are_not_taken_for_guidance():
    """Their latents are equal at the first step only: the prompts differ, not the branches."""
    pipeline = tiny.sd3()
    made = compiled(pipeline)

    def twins(i):
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i))
        tiny.generate(pipeline, i, batch=2, guidance_scale=1.0, latents=noise.repeat(2, 1, 1, 1))

    profile = ditcache.calibrate(made, twins, samples=1)
    assert (profile.branches, profile.guidance) == (("",), None)


@pytest.mark.parametrize(
    ("build", "name"), [(tiny.flux, "true_cfg_scale"), (tiny.sd3, "guidance_scale")]
)
def test_one_plan_serves_scales_up_to_twice_its_own(build, name):
    pipeline = build()
    _, plan = planned(pipeline)
    sequential = name == "true_cfg_scale"
    for seed, scale in enumerate((2.0, 3.5, 1.0, 2.0)):
        branches = 2 if sequential and scale > 1 else 1
        follows(pipeline, plan, branches=branches, seed=seed, **{name: scale})


SKIPPING = {
    "skip_guidance_layers": [1],
    "skip_layer_guidance_start": 0.1,
    "skip_layer_guidance_stop": 0.6,
}


def test_skip_layer_guidance_calls_the_model_once_more_at_some_steps():
    """The extra calls are a branch of their own; the two batched branches follow the plan."""
    pipeline = tiny.sd3()
    made = compiled(pipeline)
    for seed in range(2):
        with watched(made) as calls:
            ours = tiny.generate(pipeline, seed, **SKIPPING)
        assert calls.computed == [True] * 12
        torch.testing.assert_close(ours, uncached(pipeline, seed=seed, **SKIPPING), rtol=0, atol=0)
    plan = own_plan(made)
    with watched(made) as calls:
        ours = tiny.generate(pipeline, 2, **SKIPPING)
    close(ours, by_hand(pipeline, plan, seed=2, **SKIPPING))
    assert error(ours, uncached(pipeline, seed=2, **SKIPPING)) < 0.05
    assert len(calls.computed) == 12
    assert calls.total <= plan.computed_steps + 4
    assert ditcache.summary(made).generations == 3


def test_several_images_per_prompt_then_one():
    pipeline = tiny.flux()
    _, plan = planned(pipeline, num_images_per_prompt=2)
    for images in (2, 1, 3):
        follows(pipeline, plan, branches=2, seed=images, num_images_per_prompt=images)


def test_guidance_switched_off_in_mid_generation():
    """diffusers' recipe for dynamic guidance: the batch shrinks to one half on the way."""
    pipeline = tiny.stable_diffusion()
    made, plan = planned(pipeline)

    def off(pipe, step, _, kept):
        if step == 3:
            pipe._guidance_scale = 0.0
            kept["prompt_embeds"] = kept["prompt_embeds"].chunk(2)[-1]
        return kept

    how = {"callback_on_step_end": off, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with watched(made) as calls:
        ours = tiny.generate(pipeline, 1, **how)
    computed = plan.regions[0].computed
    assert calls.computed[:4] == [step in computed for step in range(4)]
    assert calls.computed[4], "nothing is known of the half by itself"
    assert error(ours, uncached(pipeline, seed=1, **how)) < 0.05
