"""Samplers that clip their estimate of the data: told from recorded calls, guided or not."""

from __future__ import annotations

import ditcache
import pytest
import torch
from ditcache import PlanError
from torch import Tensor

from .helpers import Denoiser, compiled, counting, first, noise, prompt

STEPS, GUIDANCE = 12, 2.5


def ddim(forward, seed: int, *, clip: float = 0.6, drawn: float = 0.0) -> Tensor:
    """DDIM over a cosine schedule as diffusers does it by default; forward(x, t) is the noise."""
    times = torch.linspace(0.95, 0.08, STEPS)
    angles = torch.cat([times, torch.zeros(1)]) * torch.pi / 2
    alpha, sigma = angles.cos(), angles.sin()
    x, random = noise(seed, batch=2), torch.Generator().manual_seed(seed)
    for i, t in enumerate(times):
        y = forward(x, t)
        data = ((x - sigma[i] * y) / alpha[i]).clamp(-clip, clip)
        x = alpha[i + 1] * data + sigma[i + 1] * y + drawn * torch.randn(x.shape, generator=random)
    return x


def alone(model, x, t):
    return first(model(x, t.expand(2), prompt(1, batch=2)))


def in_turn(model, x, t):
    with ditcache.branch("cond"):
        cond = first(model(x, t.expand(2), prompt(1, batch=2)))
    with ditcache.branch("uncond"):
        uncond = first(model(x, t.expand(2), prompt(2, batch=2)))
    return uncond + GUIDANCE * (cond - uncond)


def in_one_batch(model, x, t):
    both = torch.cat([prompt(2, batch=2), prompt(1, batch=2)])
    uncond, cond = first(model(torch.cat([x, x]), t.expand(4), both)).chunk(2)
    return uncond + GUIDANCE * (cond - uncond)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("call", [alone, in_turn, in_one_batch])
def test_a_sampler_that_clips_is_planned_with_its_own_weights(call, tmp_path):
    model = Denoiser()
    made = compiled(model)
    profile = ditcache.calibrate(made, lambda i: ddim(lambda x, t: call(made, x, t), i), samples=3)
    assert profile.clipped is not None
    assert profile.guidance == (None if call is alone else pytest.approx(GUIDANCE, abs=1e-3))
    profile.save(tmp_path / "p")
    plan = ditcache.Profile.load(tmp_path / "p").plan(speedup=2.0)
    assert plan.solver == "clamped"
    ditcache.apply(made, plan)
    with counting() as ran:
        ours = ddim(lambda x, t: call(made, x, t), 9)
    assert ran["body"] == 6 * (2 if call is in_turn else 1)
    error = relative(ours, ddim(lambda x, t: call(model, x, t), 9))
    assert error < 10 * plan.expected_error
    assert profile.plan(max_error=3 * plan.expected_error).computed_steps <= 6


def test_the_model_plans_for_it_by_itself(caplog):
    model = Denoiser()
    made = compiled(model, max_error=0.05)
    for seed in range(3):
        ours = ddim(lambda x, t: alone(made, x, t), seed)
    assert ditcache.summary(made).forecast > 0
    assert relative(ours, ddim(lambda x, t: alone(model, x, t), 2)) < 0.3
    assert "not predicted" not in caplog.text


def test_what_is_no_clamp_is_planned_as_before():
    made = compiled(Denoiser())

    def drawn(i):
        return ddim(lambda x, t: alone(made, x, t), i, drawn=0.1)

    profile = ditcache.calibrate(made, drawn, samples=2)
    assert profile.clipped is None
    assert profile.plan(speedup=2.0).expected_error is None
    with pytest.raises(PlanError, match="max_error"):
        profile.plan(max_error=0.1)


def test_a_sampler_that_never_clips_keeps_no_elements():
    made = compiled(Denoiser())

    def linear(i):
        return ddim(lambda x, t: alone(made, x, t), i, clip=1e6)

    profile = ditcache.calibrate(made, linear, samples=2)
    assert profile.clipped is None
    assert profile.plan(speedup=2.0).solver == "measured"


def test_tune_compares_what_comes_out_of_it():
    made = compiled(Denoiser())

    def clipped(i):
        return ddim(lambda x, t: alone(made, x, t), i)

    plan = ditcache.tune(made, clipped, speedup=2.0, samples=2, candidates=2)
    assert plan.solver == "clamped"
    assert plan.computed_steps == 6
    assert plan.chosen is not None
