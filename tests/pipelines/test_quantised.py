"""torchao's weight-only quantisation, before compilation and after."""

from __future__ import annotations

import ditcache
import pytest
import torch

from . import tiny_pipelines as tiny
from .observing import follows, in_full, planned, watched

quantization = pytest.importorskip("torchao.quantization")


def quantised(build, config=None):
    pipeline = build()
    config = quantization.Int8WeightOnlyConfig() if config is None else config
    quantization.quantize_(pipeline.transformer, config)
    return pipeline


@pytest.mark.parametrize("build", [tiny.flux, tiny.sd3])
def test_int8_weights_under_a_plan(build):
    pipeline = quantised(build)
    made, plan = planned(pipeline)
    follows(pipeline, plan, branches=2 if build is tiny.flux else 1, seed=1)
    assert ditcache.summary(made).uncached == ()


def test_int8_weights_with_the_exact_tier():
    """Hoisted values are remembered by the tensors that a quantised weight is made of."""
    pipeline = quantised(tiny.sd3)
    made = torch.compile(
        pipeline.transformer, backend="ditcache", options={"inner": "eager", "policy": "exact"}
    )
    pipeline.transformer = made
    in_full(pipeline, 8, seed=0)
    hits = ditcache.summary(made).hoist_hits
    assert hits["condition"] == 7, "the text's work ran once"
    in_full(pipeline, 8, seed=1)


def test_quantised_after_a_plan_was_made():
    """The weights become others of other types: a new graph, and the plan goes on."""
    pipeline = tiny.sd3()
    made, plan = planned(pipeline)
    quantization.quantize_(made._orig_mod, quantization.Int8WeightOnlyConfig())
    with watched(made) as calls:
        tiny.generate(pipeline, 0)
    assert calls.computed[0]
    follows(pipeline, plan, seed=1)
