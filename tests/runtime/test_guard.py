"""The guard: quiet on samples like those calibrated on, loud on others, and what it then does."""

from __future__ import annotations

from dataclasses import replace

import ditcache
import numpy as np
import pytest
import torch
from ditcache.passes.checks import from_low_rank
from ditcache.passes.densify import densify
from ditcache.passes.error_diffusion import expected_error
from ditcache.runtime.guard import LEFT
from ditcache.runtime.session import session_of

from .helpers import Denoiser, compiled, counting, first, generate, grid, noise, prompt


def odd(model, seed):
    """A generation whose velocities swing as they never did in calibration."""
    times, x, text = grid(20), noise(seed), prompt(seed)
    for i, t in enumerate(times):
        after = times[i + 1] if i + 1 < len(times) else torch.tensor(0.0)
        kick = 8.0 * (-1) ** i  # far off, on either side in turn
        y = first(model(x, t.expand(1), text))
        x = x + (after - t) * y + (after - t) * kick * torch.sign(y)
    return x


def guarded(action, speedup=3.0):
    model = Denoiser()
    made = compiled(model, guard=action, policy="edf", remember=False)
    profile = ditcache.calibrate(made, lambda i: generate(made, i, timesteps=grid(20)), 6)
    plan = profile.plan(speedup)
    ditcache.apply(made, plan)
    ditcache.reset(made)
    return model, made, plan


def test_it_is_quiet_in_distribution_and_counts():
    _, made, plan = guarded("warn")
    for seed in range(20, 30):
        generate(made, seed, timesteps=grid(20))
    said = ditcache.summary(made).guard
    alarms = int(said.split(" alarms")[0].split(": ")[1])
    assert alarms <= 2
    assert f"in {10 * (plan.computed_steps - 1)} checks" in said


def test_it_warns_once_about_odd_generations(caplog):
    _, made, _ = guarded("warn")
    for seed in range(4):
        assert ("as fast as in calibration" in caplog.text) == (seed >= 3)
        odd(made, seed)
    assert "warn: 4 alarms" in ditcache.summary(made).guard
    assert caplog.text.count("in 3 of 3 generations") == 1
    assert caplog.text.count("as fast as in calibration") == 1


def test_an_odd_generation_among_many_is_only_counted(caplog):
    _, made, _ = guarded("warn")
    session = session_of(made)
    assert session is not None
    session.stats.generations = 40  # quiet ones
    for seed in range(3):
        odd(made, seed)
    assert "warn: 3 alarms" in ditcache.summary(made).guard
    assert "as fast as in calibration" not in caplog.text


def test_a_guard_that_is_off_checks_nothing():
    _, made, _ = guarded("off")
    odd(made, 0)
    assert ditcache.summary(made).guard == "off"


def test_densify_computes_more_of_an_odd_generation_and_nothing_more_of_others():
    _, made, plan = guarded("densify")
    with counting() as ran:
        generate(made, 30, timesteps=grid(20))
    assert ran["body"] == plan.computed_steps
    with counting() as ran:
        odd(made, 0)
    assert plan.computed_steps < ran["body"] < 20
    summary = ditcache.summary(made)
    assert "1 densified" in summary.guard
    assert summary.fallbacks == {}


def test_compute_computes_the_rest_of_an_odd_generation_and_nothing_more_of_others():
    _, made, plan = guarded("compute")
    with counting() as ran:
        generate(made, 30, timesteps=grid(20))
    assert ran["body"] == plan.computed_steps
    assert ditcache.summary(made).fallbacks == {}
    with counting() as ran:
        odd(made, 0)
    left = ditcache.summary(made).fallbacks[LEFT]
    computed = plan.regions[0].computed
    assert 19 - left in computed, "the alarm is raised at a computed step"
    assert ran["body"] == left + sum(s <= 19 - left for s in computed)


def test_a_denser_plan_keeps_the_past_and_carries_its_error():
    _, _, plan = guarded("off")
    region = plan.regions[0]
    at = region.computed[2]
    # The generation has gone wrong so far: what a row gives falls short by a tenth.
    short = tuple(tuple(0.9 * w for w in row) for row in region.weights[:at])
    region = replace(region, weights=short + region.weights[at:])
    plan = replace(plan, regions=(region,))
    denser = densify(plan, at)
    assert denser is not None
    assert set(region.computed) < set(denser.regions[0].computed)
    assert denser.regions[0].weights[:at] == region.weights[:at]
    gram, c = from_low_rank(plan.basis), np.asarray(plan.sampler)
    before, after = (
        expected_error(r.computed, np.asarray(r.weights), gram, c)
        for r in (region, denser.regions[0])
    )
    assert after < 0.9 * before
    assert densify(plan, len(plan.timesteps)) is None


def test_recalibrate_records_the_next_generations_and_plans_anew():
    _, made, plan = guarded("recalibrate")
    odd(made, 0)
    for seed in range(2):
        with counting() as ran:
            odd(made, seed + 1)
        assert ran["body"] == 20
    with counting() as ran:
        odd(made, 9)
    assert ditcache.summary(made).fallbacks == {}
    assert ran["body"] == plan.computed_steps
    assert ditcache.summary(made).recorded == 2


def test_unknown_actions_are_refused():
    with pytest.raises(
        torch._dynamo.exc.BackendCompilerFailed, match="off, warn, densify, compute, recalibrate"
    ):
        generate(compiled(Denoiser(), guard="panic"))
