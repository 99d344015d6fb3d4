"""Half precision, and where gradients and inference mode stand."""

from __future__ import annotations

import ditcache
import pytest
import torch

from . import tiny_pipelines as tiny
from .observing import by_hand, compiled, error, in_full, own_plan, planned, same, steps_of, watched


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [tiny.flux, tiny.stable_diffusion])
def test_half_precision_is_recorded_bit_for_bit_and_planned(build, dtype):
    """Recording is bit-equal; the plan's image is that of the hand-written loop up to rounding."""
    pipeline = build().to(dtype=dtype)
    made = compiled(pipeline, profile_generations=1)
    branches = 2 if build is tiny.flux else 1
    in_full(pipeline, 8 * branches, seed=0)
    plan = own_plan(made)
    assert plan.dtype == str(dtype).removeprefix("torch.")
    with watched(made) as calls:
        ours = tiny.generate(pipeline, 1)
    assert calls.computed == steps_of(plan, branches)
    assert ours.dtype == dtype
    assert error(ours, by_hand(pipeline, plan, seed=1)) < 8 * torch.finfo(dtype).eps
    assert ditcache.summary(made).fallbacks == {}


def test_another_dtype_on_the_same_model():
    """A plan is for one dtype; the same model in another is profiled by itself."""
    pipeline = tiny.sd3()
    made = compiled(pipeline, profile_generations=1)
    in_full(pipeline, 8, seed=0)
    plan = own_plan(made)
    pipeline.to(dtype=torch.bfloat16)
    in_full(pipeline, 8, seed=1)
    assert own_plan(made).dtype == "bfloat16"
    pipeline.to(dtype=torch.float32)
    with watched(made) as calls:
        tiny.generate(pipeline, 2)
    assert calls.computed == steps_of(plan)


def test_inference_mode_and_no_grad_in_turn():
    pipeline = tiny.flux()
    made, plan = planned(pipeline)
    plain = tiny.generate(pipeline, 1)
    with torch.inference_mode(), watched(made) as calls:
        inferred = tiny.generate(pipeline, 1)
    assert calls.computed == steps_of(plan, 2)
    same(inferred.clone(), plain)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradients_are_never_cached(checkpointing, caplog):
    """A training step on the compiled model: values and gradients are those of the plain one."""
    model = tiny.flux_transformer()
    if checkpointing:
        model.enable_gradient_checkpointing()
    model.train()
    made = torch.compile(model, backend="ditcache", options={"inner": "eager"})
    inputs = tiny.flux_inputs()
    with torch.enable_grad():
        grads = []
        for called in (made, model):
            model.zero_grad()
            called(**inputs, return_dict=False)[0].square().mean().backward()
            grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert "gradients are on" in caplog.text


def test_gradient_checkpointing_left_on_at_inference():
    pipeline = tiny.flux()
    pipeline.transformer.enable_gradient_checkpointing()
    _, plan = planned(pipeline)
    with watched(pipeline.transformer) as calls:
        tiny.generate(pipeline, 1)
    assert calls.computed == steps_of(plan, 2)
