"""calibrate, apply, remove, reset, summary: what they do, and what they say when they cannot."""

from __future__ import annotations

import contextlib
import dataclasses

import ditcache
import numpy as np
import pytest
import torch
from ditcache import PlanError, ProfileError

from .helpers import (
    Denoiser,
    compiled,
    counting,
    first,
    generate,
    grid,
    make_plan,
    noise,
    planned,
    prompt,
    same,
)


def bodies(made, seed=0, **how):
    with counting() as ran:
        out = generate(made, seed, **how)
    return ran["body"], out


def test_a_plan_is_calibrated_saved_applied_and_removed(tmp_path):
    model = Denoiser()
    made = compiled(model)
    profile = ditcache.calibrate(made, lambda i: generate(made, i), samples=3)
    assert (profile.samples, len(profile.timesteps), profile.branches) == (3, 12, ("",))
    profile.save(tmp_path / "p")
    plan = ditcache.Profile.load(tmp_path / "p").plan(speedup=3.0)
    plan.save(tmp_path / "q")
    assert ditcache.apply(made, tmp_path / "q") is made
    count, out = bodies(made, 9)
    assert count == 4
    again = compiled(model, plan=tmp_path / "q")
    assert bodies(again, 9)[0] == 4
    same(bodies(again, 9)[1], out)
    assert ditcache.remove(made) is made
    count, out = bodies(made, 9)
    assert count == 12
    same(out, generate(model, 9))
    ditcache.apply(made, plan)
    assert bodies(made, 9)[0] == 4


def test_calibration_runs_uncached_whatever_plans_there_are():
    model = Denoiser()
    made, plan = planned(model)
    with counting() as ran:
        ditcache.calibrate(made, lambda i: generate(made, i), samples=2)
    assert ran["body"] == 24
    assert bodies(made)[0] == plan.computed_steps, "and leaves them as they were"


def test_a_first_call_inside_calibrate_does_not_load_remembered_plans():
    model = Denoiser()
    made = compiled(model)
    for seed in range(3):
        generate(made, seed)
    torch._dynamo.reset()
    again = Denoiser()
    again.load_state_dict(model.state_dict())
    made = compiled(again)
    with counting() as ran:
        ditcache.calibrate(made, lambda i: generate(made, i), samples=2)
    assert ran["body"] == 24
    assert bodies(made)[0] == 6


def test_exact_and_sketched_calibration_agree():
    made = compiled(Denoiser())

    def gram(exact):
        profile = ditcache.calibrate(
            made, lambda i: generate(made, i, tokens=64), samples=2, exact=exact
        )
        return profile.regions[0].gram[0, 0]

    exact, short = gram(True), gram(False)
    np.testing.assert_allclose(short, exact, rtol=0.3, atol=0.1 * np.abs(exact).max())
    assert not np.array_equal(short, exact)


def test_calibrate_records_inner_regions_on_request():
    made = compiled(Denoiser(blocks=2))
    profile = ditcache.calibrate(
        made, lambda i: generate(made, i), samples=1, regions=("block", "branch")
    )
    names = {r.region for r in profile.regions}
    assert {"denoiser", "blocks.0", "blocks.1"} < names
    assert profile.drift("blocks.1").shape == (11,)
    same(generate(made, 5), generate(made._orig_mod, 5))


def test_the_sampler_and_the_guidance_scale_are_measured():
    made = compiled(Denoiser())
    times = grid()

    def guided(seed):
        x, cond, uncond = noise(seed, tokens=64), prompt(seed), prompt(99)
        for i, t in enumerate(times):
            a, b = (first(made(x, t.expand(1), c)) for c in (cond, uncond))
            after = times[i + 1] if i + 1 < len(times) else 0.0
            x = x + (after - t) * (b + 2.5 * (a - b))

    profile = ditcache.calibrate(made, guided, samples=2)
    assert profile.guidance == pytest.approx(2.5, abs=0.01)
    steps = np.diff(np.append(times.numpy(), 0.0))
    np.testing.assert_allclose(profile.solver, steps, rtol=0.02)
    assert profile.plan(speedup=3.0).guidance == profile.guidance


@pytest.mark.parametrize("named", [True, False])
def test_the_conditional_branch_may_be_called_last(named):
    """As some loops do: the scale is that of the branch so named, else of the larger one."""
    made, times = compiled(Denoiser()), grid()

    def guided(seed, model=made):
        x, out = noise(seed, tokens=64), dict[str, torch.Tensor]()
        for i, t in enumerate(times):
            for name, text in (("uncond", prompt(99)), ("cond", prompt(seed))):
                with ditcache.branch(name) if named else contextlib.nullcontext():
                    out[name] = first(model(x, t.expand(1), text))
            after = times[i + 1] if i + 1 < len(times) else 0.0
            x = x + (after - t) * (out["uncond"] + 2.5 * (out["cond"] - out["uncond"]))
        return x

    profile = ditcache.calibrate(made, guided, samples=2)
    assert profile.guidance == pytest.approx(2.5, abs=0.01)
    plan = profile.plan(speedup=3.0)
    ditcache.apply(made, plan)
    with counting() as ran:
        ours = guided(9)
    assert ran["body"] == 8, "the plan suits the scale that it was made at"
    theirs = guided(9, made._orig_mod)
    assert (ours - theirs).norm() / theirs.norm() < 0.05


@pytest.mark.parametrize("samples", [0, -1, 1.5, "8"])
def test_a_number_of_samples_below_one_is_refused(samples):
    made = compiled(Denoiser())
    with pytest.raises(ValueError, match="samples >= 1"):
        ditcache.calibrate(made, lambda i: generate(made, i), samples=samples)


def test_generate_has_to_be_a_function():
    with pytest.raises(TypeError, match="a function of a sample's index, got int"):
        ditcache.calibrate(compiled(Denoiser()), 3)


def test_a_region_that_the_model_lacks():
    made = compiled(Denoiser())
    with pytest.raises(ProfileError, match=r"no region 'blocks\.9'; expected denoiser, block"):
        ditcache.calibrate(made, lambda i: generate(made, i), 1, regions="blocks.9")


def test_tuning_takes_a_profile_not_its_path():
    made = compiled(Denoiser())
    with pytest.raises(TypeError, match=r"expected a Profile, got str; Profile\.load"):
        ditcache.tune(made, lambda i: generate(made, i), "p.safetensors", speedup=2.0)


def test_generate_that_never_calls_the_model():
    made = compiled(Denoiser())
    with pytest.raises(ProfileError, match="did generate\\(\\) call the compiled model"):
        ditcache.calibrate(made, lambda i: None, samples=2)


def test_calibrating_a_model_that_is_not_compiled():
    model = Denoiser()
    with pytest.raises(ProfileError, match="compiled"):
        ditcache.calibrate(model, lambda i: generate(model, i), samples=1)


def test_generations_of_different_length_make_no_profile():
    made = compiled(Denoiser())
    with pytest.raises(ProfileError, match="generation 1 differs"):
        ditcache.calibrate(made, lambda i: generate(made, i, timesteps=grid(8 + i)), samples=2)
    count, _ = bodies(made)
    assert count == 12, "a calibration that failed leaves the model usable"


def test_an_exception_in_generate_leaves_the_model_usable():
    model = Denoiser()
    made, plan = planned(model)

    def stop(i):
        first(made(noise(), torch.ones(1), prompt()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ditcache.calibrate(made, stop, samples=1)
    assert bodies(made)[0] == plan.computed_steps


def test_outputs_that_are_not_finite_make_no_profile():
    model = Denoiser()
    made = compiled(model)
    model.out.bias.fill_(torch.nan)
    with pytest.raises(ProfileError, match="NaN or infinity"):
        ditcache.calibrate(made, lambda i: generate(made, i), samples=1)


def test_a_plan_for_another_model_is_refused(caplog):
    model = Denoiser()
    made, plan = planned(model)
    other = dataclasses.replace(plan, signature="f" * 16)
    with pytest.raises(PlanError, match=r"the plan is for model"):
        ditcache.apply(made, other)
    assert bodies(made)[0] == plan.computed_steps
    fresh = compiled(Denoiser(), plan=other)
    assert bodies(fresh)[0] == 12
    assert ditcache.summary(fresh).fallbacks["a plan for another model"] == 1
    assert caplog.text.count("a plan for another model") == 1


def test_a_plan_may_be_applied_before_the_first_call():
    model, plan = Denoiser(), planned(Denoiser())[1]
    made = compiled(model)
    ditcache.apply(made, plan)
    assert bodies(made)[0] == plan.computed_steps


def test_apply_in_mid_generation_takes_effect_without_harm():
    model = Denoiser()
    made, _ = planned(model, computed=range(12))
    x, text, times = noise(), prompt(), grid()
    ours, theirs = x, x
    for i, t in enumerate(times):
        if i == 5:
            ditcache.apply(made, make_plan(model, computed=(0, 1, 2, 5, 8), row=(3.0, -3.0, 1.0)))
        after = times[i + 1] if i + 1 < len(times) else 0.0
        ours = ours + (after - t) * first(made(ours, t.expand(1), text))
        theirs = theirs + (after - t) * first(model(theirs, t.expand(1), text))
    same(ours, theirs)
    assert bodies(made)[0] == 5


def test_a_plan_that_does_not_fit_the_graph_is_counted(caplog):
    model = Denoiser()
    made, plan = planned(model)
    region = dataclasses.replace(plan.regions[0], region="blocks.17")
    ditcache.apply(made, dataclasses.replace(plan, regions=(region,)))
    count, out = bodies(made)
    assert count == 12
    same(out, generate(model))
    assert ditcache.summary(made).fallbacks == {"the plan does not fit this graph": 12}
    assert caplog.text.count("does not fit this graph") == 1


def test_a_slot_budget_is_kept():
    model = Denoiser()
    plan = planned(model)[1]
    made = compiled(Denoiser(), plan=plan, slot_budget=100)
    assert bodies(made)[0] == 12
    assert ditcache.summary(made).slot_bytes == 0


def test_reset_forgets_counts_and_values_but_not_the_plan():
    model = Denoiser()
    made, plan = planned(model)
    generate(made)
    ditcache.reset(made)
    summary = ditcache.summary(made)
    assert (summary.calls, summary.slot_bytes, summary.hoisted_bytes) == (0, 0, 0)
    assert bodies(made)[0] == plan.computed_steps


@pytest.mark.parametrize("call", [ditcache.summary, ditcache.reset, ditcache.remove])
def test_a_model_that_is_not_compiled(call):
    with pytest.raises(ValueError, match=r"not compiled by ditcache; compile it first"):
        call(Denoiser())


def test_the_summary_reads_well():
    made, _ = planned(Denoiser())
    generate(made)
    summary = ditcache.summary(made)
    assert (summary.calls, summary.computed, summary.forecast) == (13, 6, 7)
    assert summary.slot_bytes == 2 * 6 * 16 * 4
    assert summary.reduction > 2
    text = str(summary)
    assert "5 of 12 steps" in text
    assert "6 computed, 7 forecast" in text
    assert ditcache.summary(made._orig_mod) == summary
