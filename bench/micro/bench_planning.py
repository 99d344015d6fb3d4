"""Solving a plan against the number of steps, from the Gram matrix of smooth random outputs."""

from __future__ import annotations

import numpy as np
import pytest
from ditcache.passes.profile import Profile, RegionProfile
from pytest_benchmark.fixture import BenchmarkFixture


def smooth_profile(steps: int) -> Profile:
    rng = np.random.default_rng(0)
    t = np.linspace(1.0, 1.0 / steps, steps)
    outputs = rng.normal(size=(256, 6)) @ np.stack([t**k for k in range(6)])
    gram = (outputs.T @ outputs / 256)[None, None]
    region = RegionProfile("denoiser", gram, (1, 256), "float32")
    return Profile("bench", tuple(t.tolist()), ("",), 1, (region,))


@pytest.mark.parametrize("policy", ["edf", "taylor-2"])
@pytest.mark.parametrize("steps", [10, 25, 50, 100, 250])
def test_solve(benchmark: BenchmarkFixture, steps: int, policy: str) -> None:
    profile = smooth_profile(steps)
    plan = benchmark.pedantic(
        profile.plan, kwargs={"speedup": 3.0, "policy": policy}, rounds=3, warmup_rounds=1
    )
    assert plan.computed_steps <= steps / 3
