"""The trained video models under ditcache, through diffusers' unmodified pipelines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ditcache
import pytest
import torch
from ditcache.models import tiny

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

STEPS = 6


@dataclass
class Video:
    """A pipeline, the name of its denoiser, its inputs, and the arguments of its calls."""

    pipeline: Any
    part: str
    inputs: Any
    options: dict[str, Any]

    def __call__(self, *, first=0, seed=0, steps=STEPS):
        return self.pipeline(
            **self.inputs[first : first + 1].kwargs(),
            **self.options,
            height=32,
            width=32,
            num_inference_steps=steps,
            output_type="latent",
            generator=torch.Generator().manual_seed(seed),
        ).frames

    def compile(self, **options):
        plain = getattr(self.pipeline, self.part)
        model = torch.compile(
            plain, backend="ditcache", options={"inner": "eager", "remember": False} | options
        )
        setattr(self.pipeline, self.part, model)
        return model


@pytest.fixture(params=["wan", "svd"])
def video(request):
    torch.compiler.reset()
    if request.param == "wan":
        options = {"num_frames": 9, "guidance_scale": 3.0}
        return Video(tiny.load_wan_emoji(), "transformer", tiny.wan_emoji_prompts(), options)
    return Video(tiny.load_svd_emoji(), "unet", tiny.svd_emoji_frames(), {})


@pytest.mark.parametrize("policy", ["none", "exact"])
def test_without_a_plan_not_a_bit_changes(video, policy):
    expected = [video(seed=0), video(first=1, seed=1)]
    model = video.compile(policy=policy)
    assert torch.equal(video(seed=0), expected[0])
    assert torch.equal(video(first=1, seed=1), expected[1])
    assert not ditcache.summary(model).fallbacks


def test_a_plan_computes_what_it_says_and_stays_near(video):
    sample = lambda steps: counted(lambda: video(first=40, seed=40, steps=steps))  # noqa: E731
    full, _ = sample(12)
    fewer, convolutions_of_six = sample(6)
    model = video.compile()
    profile = ditcache.calibrate(model, lambda i: video(first=i, seed=100 + i, steps=12), 2)
    plan = profile.plan(speedup=2.0)
    assert plan.computed_steps == 6
    ditcache.apply(model, plan)
    before = ditcache.summary(model)
    cached, convolutions = sample(12)
    said = ditcache.summary(model)
    assert not said.fallbacks
    branches = 2 if video.part == "transformer" else 1
    assert said.computed - before.computed == said.forecast - before.forecast == 6 * branches
    assert convolutions == convolutions_of_six
    off = (cached - full).square().mean()
    assert off < 0.2 * full.square().mean()
    if video.part == "unet":
        # Forecasts have to beat Euler with as many model calls. UniPC remembers outputs itself, and
        # on a grid as coarse as this one does as well.
        assert off < (fewer - full).square().mean()


def counted(run):
    """What `run` gives, and how many convolutions it ran: compiled models have them too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = run()
    events = profile.key_averages()
    return result, sum(e.count for e in events if e.key == "aten::convolution")
