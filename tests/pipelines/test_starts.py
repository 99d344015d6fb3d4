"""Generations that start in mid-schedule: image-to-image and inpainting."""

from __future__ import annotations

import diffusers
import pytest
import torch

from . import tiny_pipelines as tiny
from .observing import by_hand, close, compiled, error, in_full, planned, uncached, watched


def sharing(pipeline, cls):
    """Another pipeline around the same (compiled) model."""
    parts = {
        k: v
        for k, v in pipeline.components.items()
        if k not in ("image_encoder", "feature_extractor")
    }
    return tiny.quiet(cls(**parts))


def starting_late(cls):
    extra = {"strength": 0.65, "image": tiny.picture()}
    if "Inpaint" in cls.__name__:
        extra["mask_image"] = tiny.half_mask()
    return extra


@pytest.mark.parametrize(
    "cls", [diffusers.FluxImg2ImgPipeline, diffusers.FluxInpaintPipeline], ids=lambda c: c.__name__
)
def test_under_the_plan_of_whole_generations(cls):
    """The steps are found on the plan's grid; what its first forecasts lack is computed."""
    whole = tiny.flux()
    made, plan = planned(whole, policy="taylor-1", num_inference_steps=16)
    pipeline, how = sharing(whole, cls), starting_late(cls) | {"num_inference_steps": 16}
    with watched(made) as calls:
        ours = tiny.generate(pipeline, 1, **how)
    late = len(plan.timesteps) - len(calls.products) // 2
    assert 0 < late < 8
    close(ours, by_hand(pipeline, plan, seed=1, **how))
    for step in range(late, len(plan.timesteps)):
        if step in plan.regions[0].computed:
            at = 2 * (step - late)
            assert calls.computed[at : at + 2] == [True, True]
    assert calls.total < len(calls.products), "later forecasts have their history"
    # A whole generation right after it, and the late one again, are as if nothing had been before.
    with watched(made) as again:
        tiny.generate(whole, 2, num_inference_steps=16)
    assert again.total == 2 * plan.computed_steps
    torch.testing.assert_close(tiny.generate(pipeline, 1, **how), ours, rtol=0, atol=0)


@pytest.mark.parametrize(
    "cls",
    [diffusers.StableDiffusion3Img2ImgPipeline, diffusers.StableDiffusionInpaintPipeline],
    ids=lambda c: c.__name__,
)
def test_late_starts_are_profiled_by_themselves(cls):
    """A late start is a grid like any other: recorded twice, then planned."""
    if cls is diffusers.StableDiffusionInpaintPipeline:
        pipeline = tiny.stable_diffusion(cls, in_channels=9)  # latents, mask, masked latents
    else:
        pipeline = tiny.sd3(cls)
    made = compiled(pipeline)
    how = starting_late(cls) | {"num_inference_steps": 10}
    with watched(made) as calls:
        tiny.generate(pipeline, 0, **how)
    steps = len(calls.products)
    in_full(pipeline, steps, seed=1, **how)
    for seed in (2, 3):
        with watched(made) as calls:
            ours = tiny.generate(pipeline, seed, **how)
        assert calls.total == steps // 2
        assert error(ours, uncached(pipeline, seed=seed, **how)) < 0.05
