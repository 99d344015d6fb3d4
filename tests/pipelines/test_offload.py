"""Weights that live elsewhere: offload to the host, and layer-wise casting.

Run on the CPU with accelerate's and diffusers' own hooks: "onload" and "offload" are both the CPU
there, which leaves the hooks' part in the compiled step as it is on a GPU.
"""

from __future__ import annotations

import ditcache
import pytest
import torch

from . import tiny_pipelines as tiny
from .observing import compiled, error, planned, same, steps_of, uncached, watched

pytestmark = pytest.mark.usefixtures("nothing_before")


def test_model_offload_moves_the_model_outside_of_the_step():
    pipeline = tiny.sd3()
    made, plan = planned(pipeline)
    expected = tiny.generate(pipeline, 1)
    pipeline.enable_model_cpu_offload(device="cpu")
    with watched(made) as calls:
        ours = tiny.generate(pipeline, 1)
    assert calls.computed == steps_of(plan)
    same(ours, expected)


def grouped(model):
    cpu = torch.device("cpu")
    model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def cast(model):
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


@pytest.mark.parametrize(("hook", "said"), [(grouped, "group offloading"), (cast, "layer-wise")])
def test_hooks_inside_the_step_are_refused_by_name(hook, said, caplog):
    """They cut the step in pieces: every call computes, and one line says why and what works."""
    pipeline = tiny.sd3()
    made = compiled(pipeline)
    hook(made._orig_mod)
    how = {"num_inference_steps": 3}
    with watched(made) as calls:
        ours = tiny.generate(pipeline, 0, **how)
    assert calls.computed == [True] * 3
    assert error(ours, uncached(pipeline, seed=0, **how)) < 1e-5
    assert caplog.text.count(said) == 1
    assert "which cuts it in pieces" in caplog.text


def test_a_plan_survives_hooks_that_come_and_go():
    pipeline = tiny.sd3()
    made, plan = planned(pipeline)
    expected = tiny.generate(pipeline, 1)
    pipeline.enable_model_cpu_offload(device="cpu")
    pipeline.remove_all_hooks()
    with watched(made) as calls:
        same(tiny.generate(pipeline, 1), expected)
    assert calls.computed == steps_of(plan)
    assert ditcache.summary(made).fallbacks == {}
