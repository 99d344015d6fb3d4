"""Samplers: what holds with each.

Deterministic ones with one model call a step are planned with their own weights. Of a stochastic
one the plan keeps its cost and stays close, but its predicted error means nothing. One with several
calls a step is computed in full.
"""

from __future__ import annotations

import diffusers
import ditcache
import pytest

from . import tiny_pipelines as tiny
from .observing import compiled, error, follows, in_full, own_plan, planned, uncached, watched

STEPS = 10
DETERMINISTIC = {
    "ddim": diffusers.DDIMScheduler,
    "dpm++ 2m": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_deterministic_samplers_weights_and_scale_are_measured(name):
    pipeline = tiny.stable_diffusion(scheduler=DETERMINISTIC[name](**tiny.NOISE))
    _, plan = planned(pipeline, num_inference_steps=STEPS, guidance_scale=3.0)
    assert plan.solver == "measured"
    assert plan.guidance == pytest.approx(3.0, abs=0.1)
    follows(pipeline, plan, seed=1, num_inference_steps=STEPS, guidance_scale=3.0)


def test_a_stochastic_sampler_is_planned_without_a_prediction(caplog):
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**tiny.NOISE)
    pipeline = tiny.stable_diffusion(scheduler=scheduler)
    made = compiled(pipeline)
    for seed in range(2):
        in_full(pipeline, STEPS, seed=seed, num_inference_steps=STEPS)
    plan = own_plan(made)
    follows(pipeline, plan, seed=2, num_inference_steps=STEPS)
    ours = tiny.generate(pipeline, 3, num_inference_steps=STEPS)
    assert error(ours, uncached(pipeline, seed=3, num_inference_steps=STEPS)) < 0.05
    assert plan.expected_error is None
    assert caplog.text.count("does not add the outputs up") == 1


def test_an_error_bound_is_refused_for_a_stochastic_sampler(caplog):
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**tiny.NOISE)
    pipeline = tiny.stable_diffusion(scheduler=scheduler)
    made = compiled(pipeline, max_error=0.01)
    for seed in range(3):
        in_full(pipeline, STEPS, seed=seed, num_inference_steps=STEPS)
    assert ditcache.summary(made).fallbacks["no plan could be made"] == 1
    assert "max_error" in caplog.text


@pytest.mark.parametrize("cls", [diffusers.HeunDiscreteScheduler, diffusers.PNDMScheduler])
def test_a_sampler_with_several_calls_at_one_timestep_is_computed_in_full(cls, caplog):
    pipeline = tiny.stable_diffusion(scheduler=cls(**tiny.NOISE))
    made = compiled(pipeline, profile_generations=1)
    with watched(made) as calls:
        tiny.generate(pipeline, 0, num_inference_steps=6)
    for seed in (1, 2):
        in_full(pipeline, len(calls.products), seed=seed, num_inference_steps=6)
    assert ditcache.summary(made).forecast == 0
    assert caplog.text.count("calls the model several times at one timestep") == 1


def test_another_scheduler_on_the_same_compiled_model():
    """Each sampler has a grid of its own and gets a plan of its own; the first is kept."""
    pipeline = tiny.stable_diffusion()
    made = compiled(pipeline, profile_generations=1)
    ddim = pipeline.scheduler
    karras = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, **tiny.NOISE)
    for scheduler, expected in ((ddim, STEPS), (karras, STEPS), (ddim, 5), (karras, 5)):
        pipeline.scheduler = scheduler
        with watched(made) as calls:
            tiny.generate(pipeline, expected, num_inference_steps=STEPS)
            if expected == STEPS:  # the next generation, of whatever grid, ends the recording
                tiny.generate(pipeline, 77, num_inference_steps=STEPS)
        assert calls.computed[:STEPS].count(True) == expected
