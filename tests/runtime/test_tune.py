"""tune: plans chosen by running them, and what it says when that cannot be done."""

from __future__ import annotations

import dataclasses

import ditcache
import numpy as np
import pytest
import torch
from ditcache import Plan, PlanError, ProfileError

from .helpers import Denoiser, compiled, counting, first, generate, grid, noise, prompt


def calibrated(steps=20, samples=4, **shape):
    model = Denoiser()
    made = compiled(model, policy="none")

    def run(i):
        return generate(made, i, timesteps=grid(steps), **shape)

    return model, made, run, ditcache.calibrate(made, run, samples)


def relative_error(made, model, plan, seeds, **shape):
    ditcache.apply(made, plan)
    off = total = 0.0
    for seed in seeds:
        wanted = generate(model, seed, timesteps=grid(20), **shape)
        got = generate(made, seed, timesteps=grid(20), **shape)
        off += float((got - wanted).square().sum())
        start = noise(seed, **shape)
        total += float((wanted - start).square().sum())
    return (off / total) ** 0.5


@pytest.mark.parametrize("shape", [{}, {"batch": 3}])
def test_the_measured_error_is_what_the_plan_does(shape):
    """And it is no worse than that of the plan solved without running anything."""
    model, made, run, profile = calibrated(**shape)
    assert profile.reference is not None
    plan = ditcache.tune(made, run, profile, speedup=4.0)
    assert plan.computed_steps == 5
    assert plan.chosen is not None
    assert plan.chosen.startswith("closed loop")
    assert plan.expected_error == pytest.approx(
        relative_error(made, model, plan, range(4), **shape), rel=0.02
    )
    solved = profile.plan(speedup=4.0)
    assert plan.expected_error <= 1.02 * relative_error(made, model, solved, range(4), **shape)


def test_a_tuned_plan_holds_on_other_samples():
    model, made, run, profile = calibrated(samples=6)
    plan = ditcache.tune(made, run, profile, computed_steps=5)
    fresh = range(100, 110)
    tuned = relative_error(made, model, plan, fresh)
    # What is solved may be as good on a model this small, six samples being few to fit to.
    assert tuned < 1.3 * relative_error(made, model, profile.plan(computed_steps=5), fresh)
    published = profile.plan(computed_steps=5, policy="taylor-2")
    assert tuned < 0.8 * relative_error(made, model, published, fresh)


def test_a_plan_remembers_how_it_was_chosen(tmp_path):
    _, made, run, profile = calibrated()
    plan = ditcache.tune(made, run, profile, speedup=4.0, candidates=2)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_it_leaves_the_model_as_it_was():
    model, made, run, profile = calibrated()
    ditcache.remove(made)
    ditcache.tune(made, run, profile, speedup=4.0, candidates=2)
    with counting() as ran:
        out = generate(made, 50)
    assert ran["body"] == 12
    torch.testing.assert_close(out, generate(model, 50), rtol=0, atol=0)


def test_candidates_share_compiled_programs():
    """Two plans that differ in weights alone are lowered once."""
    _, made, run, profile = calibrated()
    from ditcache.runtime.session import session_of

    ditcache.tune(made, run, profile, speedup=4.0, candidates=8)
    session = session_of(made)
    assert session is not None
    assert len(session.executors[0]._programs) <= 1 + 3  # uncached, and one for each history length


def test_a_measured_error_bound_is_kept():
    _, made, run, profile = calibrated()
    plan = ditcache.tune(made, run, profile, max_error=0.02, candidates=3)
    assert plan.expected_error is not None
    assert plan.expected_error <= 0.02
    assert plan.computed_steps < 20


def test_a_profile_from_a_file_is_recorded_again(tmp_path):
    _, made, run, profile = calibrated()
    profile.save(tmp_path / "p")
    loaded = ditcache.Profile.load(tmp_path / "p")
    assert loaded.reference is None
    plan = ditcache.tune(made, run, loaded, speedup=4.0, samples=2, candidates=2)
    assert "2 generations" in (plan.chosen or "")


def churning(model, seed):
    """An ancestral sampler: noise is added at each step, the same for the same seed."""
    times, x, text = grid(12), noise(seed), prompt(seed)
    g = torch.Generator().manual_seed(seed)
    for i, t in enumerate(times):
        after = times[i + 1] if i + 1 < len(times) else torch.tensor(0.0)
        x = x + (after - t) * first(model(x, t.expand(1), text))
        x = x + 0.5 * (t - after) ** 0.5 * torch.randn(x.shape, generator=g)
    return x


def test_a_stochastic_sampler_is_measured_by_what_generate_returns():
    made = compiled(Denoiser(), policy="none")
    profile = ditcache.calibrate(made, lambda i: churning(made, i), 3)
    assert profile.reference is None
    plan = ditcache.tune(made, lambda i: churning(made, i), speedup=3.0, samples=3)
    assert plan.computed_steps == 4
    assert "refit" not in plan.regions[0].forecaster
    ditcache.remove(made)
    wanted = [churning(made, i) for i in range(3)]
    ditcache.apply(made, plan)
    got = [churning(made, i) for i in range(3)]
    off = np.mean([float((a - b).square().sum()) for a, b in zip(got, wanted, strict=True)])
    size = np.mean([float(b.square().sum()) for b in wanted])
    assert plan.expected_error == pytest.approx((off / size) ** 0.5, rel=0.2)


def test_nothing_to_compare_is_an_error():
    made = compiled(Denoiser(), policy="none")

    def run(i):
        churning(made, i)

    with pytest.raises(PlanError, match="returned NoneType"):
        ditcache.tune(made, run, speedup=3.0, samples=2)


def test_bad_calls_are_refused():
    _, made, run, profile = calibrated()
    with pytest.raises(PlanError, match="exactly one"):
        ditcache.tune(made, run, profile)
    with pytest.raises(PlanError, match="nearest is 10 with 2"):
        ditcache.tune(made, run, profile, speedup=15.0)
    with pytest.raises(ValueError, match="candidates >= 1"):
        ditcache.tune(made, run, profile, speedup=2.0, candidates=0)
    other = dataclasses.replace(profile, signature="another")
    with pytest.raises(ProfileError, match="is of model another"):
        ditcache.tune(made, run, other, speedup=2.0)
