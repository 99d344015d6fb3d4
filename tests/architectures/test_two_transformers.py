"""Wan 2.2: two transformers share a generation, each compiled and planned for its own steps."""

from __future__ import annotations

from types import SimpleNamespace

import ditcache
import pytest
import torch

from bench.architectures.base import Request
from bench.architectures.wan import wan_pair, wan_switch
from bench.coverage import compile_for_tests

from .outside import planned_by_hand

STEPS = 10


@pytest.fixture
def at_work():
    torch._dynamo.reset()
    with torch.no_grad():
        yield wan_pair(), wan_switch()
    torch._dynamo.reset()


def test_each_transformer_follows_its_own_plan(at_work):
    pair, sampler = at_work
    made = SimpleNamespace(
        high=compile_for_tests(pair.high, "none"), low=compile_for_tests(pair.low, "none")
    )
    requests = [Request(STEPS, seed=seed) for seed in range(2)]
    uncached = [sampler(pair, r) for r in requests]
    for request, expected in zip(requests, uncached, strict=True):
        torch.testing.assert_close(sampler(made, request), expected, rtol=0, atol=0)
    plans = []
    for part in (made.high, made.low):
        profile = ditcache.calibrate(part, lambda _: sampler(made, requests[0]), samples=1)
        assert 3 <= len(profile.timesteps) < STEPS
        plans.append(profile.plan(computed_steps=len(profile.timesteps) - 1))
    assert sum(len(plan.timesteps) for plan in plans) == STEPS
    for part, plan in zip((made.high, made.low), plans, strict=True):
        ditcache.apply(part, plan)
        ditcache.reset(part)
    for request, expected in zip(requests, uncached, strict=True):
        ours = sampler(made, request)
        with planned_by_hand(pair.high, plans[0], 2), planned_by_hand(pair.low, plans[1], 2):
            theirs = sampler(pair, request)
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
        assert (ours - expected).norm() > 1e-5 * ours.norm(), "the plans did nothing"
    for part in (made.high, made.low):
        summary = ditcache.summary(part)
        assert (summary.forecast, summary.fallbacks) == (4, {})  # a step of two branches, twice
