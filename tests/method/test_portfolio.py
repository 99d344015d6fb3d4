"""The portfolio: budgets, robustness, and that its choice holds on fresh outputs."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from ditcache.passes.budget import steps_for
from ditcache.passes.error_diffusion import error_weights, expected_error, score
from ditcache.passes.plan_format import Plan, PlanError
from ditcache.passes.portfolio import POLICIES, guided_gram, solve
from ditcache.passes.solver_weights import from_grid
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_meets_the_budget(synthetic, policy):
    p = synthetic.profile(50)
    for speedup, n in ((1, 50), (2, 25), (2.5, 20), (3, 16), (5, 10), (7, 7), (25, 2)):
        plan = p.plan(speedup, policy=policy)
        assert plan.computed_steps == n
        assert plan.macs_reduction >= speedup
        plan.validate()


def test_unreachable_budgets_name_the_nearest(synthetic):
    p = synthetic.profile(50)
    with pytest.raises(PlanError, match="nearest is 25 with 2"):
        p.plan(100)
    with pytest.raises(PlanError, match="nearest is 50"):
        p.plan(computed_steps=51)
    with pytest.raises(PlanError, match="nearest is 2"):
        p.plan(computed_steps=0)
    for wrong in (0.5, -1, float("nan"), float("inf"), "3"):
        with pytest.raises(PlanError, match="at least 1"):
            p.plan(wrong)
    for wrong in (2.5, "3"):
        with pytest.raises(PlanError, match="computed_steps must be a whole number, got"):
            p.plan(computed_steps=wrong)
    for wrong in (-0.1, float("nan"), "small"):
        with pytest.raises(PlanError, match="max_error must be a relative error"):
            p.plan(max_error=wrong)
    with pytest.raises(PlanError, match="timesteps= must be at least 3 finite numbers"):
        p.plan(2, timesteps="fine")
    with pytest.raises(PlanError, match="exactly one"):
        p.plan()
    with pytest.raises(PlanError, match="exactly one"):
        p.plan(2, computed_steps=3)
    with pytest.raises(PlanError, match="no policy 'magic'"):
        p.plan(2, policy="magic")


def test_speedup_is_not_lost_to_rounding():
    for n in range(2, 50):
        assert steps_for(50, computed_steps=None, speedup=50 / n) == n


def test_max_error_gives_few_steps_that_keep_it(synthetic):
    p = synthetic.profile(50)
    plan = p.plan(max_error=0.01)
    assert plan.expected_error is not None
    assert plan.expected_error <= 0.01
    assert p.plan(computed_steps=plan.computed_steps - 1).expected_error > 0.01
    assert p.plan(max_error=0.0).computed_steps == 50


def test_edf_beats_every_plain_policy_on_fresh_outputs(synthetic):
    """Planned on two samples, judged on sixteen others."""
    p, grid = synthetic.profile(50, samples=2), synthetic.grid(50)
    fresh, c = synthetic.gram(synthetic.outputs(grid, 16, seed=99)), from_grid(grid)

    def error(plan: Plan) -> float:
        region = plan.regions[0]
        return expected_error(region.computed, np.asarray(region.weights), fresh, c)

    for speedup in (2, 3, 5, 7):
        ours = error(p.plan(speedup))
        for policy in POLICIES[1:]:
            assert ours < error(p.plan(speedup, policy=policy)), (speedup, policy)


def test_planning_is_fast(synthetic):
    p = synthetic.profile(50)
    p.plan(5)
    began = time.process_time()
    p.plan(5)
    assert time.process_time() - began < 1.0


@pytest.mark.slow
def test_a_thousand_steps_do_not_explode(synthetic):
    p = synthetic.profile(1000, samples=1)
    began = time.process_time()
    assert p.plan(5).computed_steps == 200
    assert time.process_time() - began < 15.0


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 20), st.integers(0, 4), st.integers(0, 10**6))
def test_any_positive_matrix_gives_a_sound_plan(steps, rank, seed):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(steps, rank))
    x = np.sort(rng.uniform(0.01, 1, steps))[::-1]
    n = int(rng.integers(min(2, steps), steps + 1))
    region, error = solve(y @ y.T, x.tolist(), from_grid(x.tolist()), computed_steps=n)
    assert len(region.computed) == n
    assert np.isfinite(error)
    Plan("s", tuple(x.tolist()), (region,), "edf", error).validate()


def test_noise_in_the_measurement_costs_little(synthetic):
    """A count-sketch of 512 numbers in place of exact inner products."""
    grid = synthetic.grid(50)
    c = from_grid(grid)
    y = synthetic.outputs(grid, 2, size=5000)
    rng = np.random.default_rng(0)
    bucket, sign = rng.integers(0, 512, 5000), rng.choice([-1.0, 1.0], 5000)
    z = np.zeros((2, 50, 512))
    for n in range(2):
        for t in range(50):
            z[n, t] = np.bincount(bucket, sign * y[n, t], 512)
    fresh = synthetic.gram(synthetic.outputs(grid, 8, seed=5, size=5000))
    errors = []
    for g in (synthetic.gram(y), np.einsum("nsm,ntm->st", z, z) / 10000):
        region, _ = solve(g, grid, c, speedup=5)
        left = error_weights(region.computed, np.asarray(region.weights), c)
        errors.append(float(score(left, fresh, c)))
    assert errors[1] < 1.5 * errors[0]


def test_guided_gram_is_that_of_the_guided_output():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(2, 6, 9))
    g = np.einsum("asm,btm->abst", y, y)
    for conditional in (0, 1):
        guided = 3.5 * y[conditional] - 2.5 * y[1 - conditional]
        assert np.allclose(guided_gram(g, 3.5, conditional), guided @ guided.T)
    assert np.allclose(guided_gram(g, None), y[0] @ y[0].T + y[1] @ y[1].T)
    assert np.allclose(guided_gram(g[:1, :1], 3.5), y[0] @ y[0].T)


@pytest.mark.parametrize("policy", ["edf", "lagrange-2-best"])
def test_rising_time_gives_the_plan_of_falling_time(synthetic, policy):
    falling = synthetic.profile(steps=24)
    rising = replace(falling, timesteps=tuple(1.0 - t for t in falling.timesteps))
    one, other = (p.plan(speedup=3.0, policy=policy) for p in (falling, rising))
    assert one.regions[0].computed == other.regions[0].computed
    np.testing.assert_allclose(one.regions[0].weights, other.regions[0].weights, atol=1e-7)
    assert other.validate().timesteps[0] == 0.0


def test_a_rising_profile_serves_other_rising_grids(synthetic):
    falling = synthetic.profile(steps=24)
    rising = replace(falling, timesteps=tuple(1.0 - t for t in falling.timesteps))
    grid = tuple(np.linspace(0.0, rising.timesteps[-1], 16).tolist())
    assert len(rising.plan(speedup=2.0, timesteps=grid).timesteps) == 16
    with pytest.raises(PlanError, match="runs against"):
        rising.plan(speedup=2.0, timesteps=grid[::-1])


def test_nothing_leans_on_weights_that_are_not_known(synthetic):
    """Of a sampler that clips no error is predicted; of one that draws noise nothing is solved."""
    p = replace(synthetic.profile(40), adds_up=False)
    assert p.plan(4).expected_error is None
    p = replace(p, draws_noise=True)
    plan = p.plan(4)
    assert plan.regions[0].forecaster.startswith(("reuse", "taylor", "lagrange"))
    assert plan.expected_error is None
    assert plan.basis is None
    assert plan.checks is not None, "the guard needs no weights of the sampler"
    for asked in (lambda: p.plan(max_error=0.1), p.frontier):
        with pytest.raises(PlanError, match="clips"):
            asked()
    assert not replace(p, adds_up=True).merged(p).adds_up
    assert replace(p, draws_noise=False).merged(p).draws_noise


def test_the_error_is_told_in_terms_of_the_sample(synthetic):
    """Of predictions of the data or the noise c' G c is not the power of the sample."""
    p = synthetic.profile(40)
    plain, scaled = p.plan(4), replace(p, power=4.0).plan(4)
    g, c = p.regions[0].gram[0, 0], from_grid(p.timesteps)
    assert scaled.regions == plain.regions
    assert scaled.expected_error == pytest.approx(
        plain.expected_error * np.sqrt(c @ g @ c / 4.0), rel=1e-6
    )
    again = Plan.from_json(scaled.to_json())
    assert again.power == 4.0
    assert '"power"' not in plain.to_json(), "as older readers know it"
    rows = {row.computed_steps: row.expected_error for row in again.frontier()}
    assert rows[10] == pytest.approx(scaled.expected_error, rel=1.0)
    with pytest.raises(PlanError, match="power"):
        replace(scaled, power=-1.0).validate()


def test_weights_that_vary_with_the_sample_are_averaged(synthetic):
    one, two = np.linspace(-1, -2, 12), np.linspace(-3, -2, 12)
    a, b = (synthetic.profile(12, solver=c, power=0.5) for c in (one, two))
    merged = a.merged(b).solver
    assert merged == pytest.approx((one / 1.5 + two / 2.5) / 2 * 2.0), "at their mean size"
    assert a.merged(b).power == pytest.approx(0.5)
    assert replace(a, power=None).merged(replace(b, power=None)).solver is None
