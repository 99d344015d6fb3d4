"""Architectures through Inductor, as users run them: all other tests here keep every bit instead.

Inductor fuses across the borders between blocks where it is given the whole graph, and ditcache
hands it the blocks one kind at a time, so sums are taken in another order: results agree to 1e-5 of
their size. What ditcache itself does to the graph changes no bit.
"""

from __future__ import annotations

from typing import Any

import ditcache
import pytest
import torch
from torch import Tensor, nn

from bench.architectures import ARCHITECTURES, Request

from .outside import planned_by_hand

STEPS = Request(4)


def compiled(model: nn.Module, policy: str) -> Any:
    options = {"inner": "inductor", "policy": policy, "remember": False}
    return torch.compile(model, backend="ditcache", options=options)


def near(one: Tensor, two: Tensor) -> None:
    assert (one - two).norm() <= 1e-5 * two.norm(), f"{(one - two).norm() / two.norm():.2g}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DiT", "Flux", "Wan 2.1 T2V"])
def test_the_same_results_as_inductor_alone(name):
    architecture = ARCHITECTURES[name]
    model, sampler = architecture.build(), architecture.sampler()
    with torch.no_grad():
        torch._dynamo.reset()
        expected = sampler(torch.compile(model, backend="inductor"), STEPS)
        near(expected, sampler(model, STEPS))
        torch._dynamo.reset()
        without = sampler(compiled(model, "none"), STEPS)
        near(without, expected)
        torch._dynamo.reset()
        made = compiled(model, "exact")
        torch.testing.assert_close(sampler(made, STEPS), without, rtol=0, atol=0)
        profile = ditcache.calibrate(made, lambda _: sampler(made, STEPS), samples=1)
        plan = profile.plan(computed_steps=2)
        ditcache.apply(made, plan)
        ours = sampler(made, STEPS)
        with planned_by_hand(model, plan, architecture.branches) as by_hand:
            near(ours, sampler(by_hand, STEPS))
        assert (ours - expected).norm() > 1e-5 * expected.norm(), "the plan did nothing"
        summary = ditcache.summary(made)
    torch._dynamo.reset()
    assert (summary.fallbacks, summary.uncached) == ({}, ())
    assert summary.forecast == 2 * architecture.branches
