"""Solver weights: from the grid, from a scheduler's impulse response, from recorded calls."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from ditcache.passes.measured_solver import draws_noise, measured
from ditcache.passes.plan_format import PlanError
from ditcache.passes.solver_weights import from_grid, impulse_response

diffusers = pytest.importorskip("diffusers")


def flow(shift=3.0):
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)


def make(name, **config):
    return getattr(diffusers, name)(**config)


def test_euler_on_a_flow_is_the_grid():
    scheduler = flow()
    scheduler.set_timesteps(20)
    grid = [float(t) for t in scheduler.timesteps]
    expected = np.diff(np.append(np.asarray(grid) / 1000, 0.0))
    assert np.allclose(from_grid(grid), expected)
    assert np.allclose(from_grid([t / 1000 for t in grid]), expected)
    assert np.allclose(impulse_response(scheduler, 20), expected, atol=1e-6)


def test_a_grid_that_ends_at_zero_keeps_a_last_weight():
    assert from_grid([0.9, 0.6, 0.3, 0.0]) == pytest.approx([-0.3] * 4)


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
DETERMINISTIC = [
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("DDIMScheduler", {"clip_sample": False}),
    ("DDIMScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", FLOW),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", FLOW),
    ("EulerDiscreteScheduler", {}),
]


@pytest.mark.parametrize(("name", "config"), DETERMINISTIC)
@pytest.mark.parametrize("used", [False, True])
def test_impulse_response_predicts_the_effect_of_any_output_error(name, config, used):
    """c @ d is how far the final sample moves when the outputs move by d."""
    scheduler, steps = make(name, **config), 12
    if used:  # as a pipeline leaves it
        scheduler.set_timesteps(steps)
        state = torch.ones(1, 1, dtype=torch.float64)
        for t in scheduler.timesteps:
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(state, t)
            state = scheduler.step(0.1 * state, t, state, return_dict=False)[0]
    before = copy.deepcopy(scheduler.__dict__)
    c = impulse_response(scheduler, steps)
    for key in ("timesteps", "sigmas"):
        if key in before and before[key] is not None:
            now = torch.as_tensor(getattr(scheduler, key))
            assert torch.equal(torch.as_tensor(before[key]), now)
    assert getattr(scheduler, "_step_index", None) == before.get("_step_index")

    rng = np.random.default_rng(0)
    y, d = 0.02 * rng.normal(size=(2, steps))

    def final(outputs):
        fresh = make(name, **(config | ({"clip_sample": False} if name == "DDIMScheduler" else {})))
        fresh.set_timesteps(steps)
        state = torch.full((1, 1), 0.3, dtype=torch.float64)
        for t, value in zip(fresh.timesteps, outputs, strict=True):
            output = torch.full((1, 1), value, dtype=torch.float64)
            if hasattr(fresh, "scale_model_input"):
                fresh.scale_model_input(state, t)
            state = fresh.step(output, t, state, return_dict=False)[0]
        return float(state)

    assert final(y + d) - final(y) == pytest.approx(float(c @ d), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_stochastic_schedulers_are_refused(name):
    with pytest.raises(PlanError, match="noise"):
        impulse_response(make(name), 10)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_predictor_and_corrector_are_refused(name):
    with pytest.raises(PlanError, match="predictor and corrector"):
        impulse_response(make(name), 10)


def test_missing_settings_are_explained():
    scheduler = make("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    with pytest.raises(PlanError, match="already set"):
        impulse_response(scheduler, 10)
    scheduler.set_timesteps(10, mu=1.1)
    assert impulse_response(scheduler, 10).sum() == pytest.approx(-1.0, abs=1e-3)


def run(steps=20, samples=3, size=200, guidance=2.5, seed=0, dtype=np.float64, noise=0.0):
    """Recorded calls of an Euler flow sampler with two branches of smooth outputs."""
    rng = np.random.default_rng(seed)
    sigma = np.linspace(1, 0, steps + 1)
    sigma = 3 * sigma / (1 + 2 * sigma)
    x = rng.normal(size=(samples, size))
    target = rng.normal(size=(samples, size))
    zx, zy = np.zeros((samples, steps, size)), np.zeros((samples, 2, steps, size))
    for t in range(steps):
        zx[:, t] = x
        cond = x - target * (1 - 0.3 * sigma[t]) + 0.2 * np.tanh(x)
        uncond = x - 0.7 * target + 0.1 * x**2 * sigma[t]
        zy[:, 0, t], zy[:, 1, t] = cond, uncond
        moved = x + (sigma[t + 1] - sigma[t]) * (guidance * cond + (1 - guidance) * uncond)
        moved = moved + noise * abs(sigma[t + 1] - sigma[t]) ** 0.5 * rng.normal(size=moved.shape)
        x = torch.from_numpy(moved).to(torch.bfloat16).double().numpy() if dtype is None else moved
    return zx, zy, sigma


def test_the_solver_is_learnt_from_recorded_calls():
    zx, zy, sigma = run()
    found = measured(zx, zy, sigma[:-1].tolist())
    assert found is not None
    assert found.guidance == pytest.approx(2.5, abs=1e-6)
    assert found.weights == pytest.approx(np.diff(sigma), abs=1e-6)
    assert found.residual < 1e-9


def test_the_solver_is_learnt_from_bfloat16_latents():
    zx, zy, sigma = run(dtype=None)
    found = measured(zx, zy, sigma[:-1].tolist())
    assert found is not None
    assert found.guidance == pytest.approx(2.5, rel=0.1)
    assert np.abs(found.weights - np.diff(sigma)).max() < 0.1 * np.abs(np.diff(sigma)).mean()


def test_one_branch_has_no_guidance():
    zx, zy, sigma = run(guidance=1.0)
    found = measured(zx, zy[:, :1], sigma[:-1].tolist())
    assert found is not None
    assert found.guidance is None
    assert found.weights == pytest.approx(np.diff(sigma), abs=1e-6)


def test_a_stochastic_sampler_is_not_mistaken_for_a_deterministic_one():
    zx, zy, sigma = run(noise=1.0)
    assert measured(zx, zy, sigma[:-1].tolist()) is None
    assert draws_noise(zx, zy)
    assert not draws_noise(*run()[:2])


def test_measured_explains_wrong_shapes():
    with pytest.raises(PlanError, match="zx"):
        measured(np.zeros((2, 5, 7)), np.zeros((2, 1, 4, 7)))
    assert measured(np.full((1, 5, 7), np.nan), np.zeros((1, 1, 5, 7))) is None
    assert measured(np.zeros((1, 5, 7)), np.zeros((1, 1, 5, 7))) is None


SAMPLERS = [
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0,
                                 "prediction_type": "flow_prediction"}),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0,
                                     "prediction_type": "flow_prediction"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DDIMScheduler", {"clip_sample": False}),
]  # fmt: skip


def recorded(scheduler, guidance=3.0):
    """Calls of a sampler in float64: latents, two branches' outputs, and the final state."""
    rng = np.random.default_rng(0)
    x, target = torch.from_numpy(rng.normal(size=(2, 4, 60)))
    xs, ys = [], []
    for i, t in enumerate(scheduler.timesteps):
        s = i / len(scheduler.timesteps)
        cond = torch.tanh(x * (1.2 - s)) - target * (1 - 0.3 * s) + 0.3 * torch.sin(3 * x + s)
        uncond = 0.8 * torch.tanh(x + s) - 0.5 * target
        xs.append(x)
        ys.append(torch.stack([cond, uncond], 1))
        output = guidance * cond + (1 - guidance) * uncond
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return torch.stack(xs, 1).numpy(), torch.stack(ys, 2).numpy(), x.numpy()


@pytest.mark.parametrize(("name", "config"), SAMPLERS)
def test_a_sampler_with_memory_is_learnt_from_recorded_calls(name, config):
    """Every weight that shows in the calls, as the scheduler object itself gives it."""
    scheduler = make(name, **config)
    scheduler.set_timesteps(20)
    expected = impulse_response(scheduler, 20)
    zx, zy, final = recorded(scheduler)
    found = measured(zx, zy, [float(t) for t in scheduler.timesteps])
    assert found is not None
    assert found.residual < 1e-5
    assert found.guidance == pytest.approx(3.0, abs=1e-3)
    if config.get("use_flow_sigmas"):
        # The last step, which no call sees, of a flow: the latents less what noise is left.
        assert found.weights == pytest.approx(expected, abs=0.02 * np.abs(expected).mean())
        last = found.update.after(19, list(zx.swapaxes(0, 1)), list(zy.transpose(2, 0, 1, 3)))
        assert np.abs(last - final).max() < 0.05 * np.abs(final - zx[:, -1]).max()
    else:
        # Of a noise prediction the weights also reckon with the model's answer.
        assert found.update.answer is not None
        size = (replace(found.update, answer=None).response()[0] / expected)[:-1]
        assert size == pytest.approx(np.full(19, size.mean()), rel=0.01)


def data_prediction(answer, seed=0):
    """Latents and outputs of a sampler in log steps whose model predicts the data, [n, T, m]."""
    rng = np.random.default_rng(seed)
    sigmas = np.geomspace(20.0, 0.02, 30)
    x, xs, ys = 20 * rng.normal(size=(4, 64)), [], []
    for i, sigma in enumerate(sigmas):
        y = answer(x, sigma)
        after = sigmas[i + 1] if i + 1 < len(sigmas) else 0.0
        xs.append(x)
        ys.append(y)
        x = after / sigma * x + (1 - after / sigma) * y
    return np.stack(xs, 1), np.stack(ys, 1)[:, None], sigmas


def test_a_data_prediction_answers_to_the_sample():
    """The weights are those of the closed loop: on Gaussian data an error moves the model, too."""

    def wiener(x, sigma, power=0.25):
        return power / (power + sigma**2) * x

    x, y, sigmas = data_prediction(wiener)
    y = y + 1e-3 * np.random.default_rng(1).normal(size=y.shape)  # else x and y are collinear
    x = x.copy()
    for t in range(len(sigmas) - 1):  # what this sampler does with those outputs
        ratio = sigmas[t + 1] / sigmas[t]
        x[:, t + 1] = ratio * x[:, t] + (1 - ratio) * y[:, 0, t]
    found = measured(x, y, sigmas)
    assert found is not None
    ratio = np.append(sigmas[1:], 0.0) / sigmas
    expected = []
    for t in range(len(sigmas) - 1):
        left = 1 - ratio[t]
        for s in range(t + 1, len(sigmas) - 1):
            left *= ratio[s] + (1 - ratio[s]) * 0.25 / (0.25 + sigmas[s] ** 2)
        expected.append(left)
    got = found.weights[:-1] / found.weights[-2]  # the last update is not seen, and scales them all
    assert np.allclose(got, np.asarray(expected) / expected[-1], rtol=0.05)
    assert got[0] / got.max() > 0.01, "without the answer 1e-3 of what the last steps weigh"


def test_a_prediction_of_the_data_is_where_the_sampler_ends():
    """The last update is seen by no call; near the end the output and the latents are the same."""
    x, y, sigmas = data_prediction(lambda x, sigma: 0.25 / (0.25 + sigma**2) * x)
    found = measured(x + 1e-6 * np.random.default_rng(1).normal(size=x.shape), y, sigmas)
    assert found is not None
    last = found.update.after(
        len(sigmas) - 1, list(x.swapaxes(0, 1)), list(y.transpose(2, 0, 1, 3))
    )
    assert np.allclose(last, y[:, 0, -1])


def test_errors_like_the_data_outlast_the_noise():
    """Data that varies in few directions: what is wrong with a prediction lies in those, too."""
    power = np.where(np.arange(64) < 4, 16 * 0.25, 0.0)  # as much as of 64 even ones
    x, y, sigmas = data_prediction(lambda x, sigma: power / (power + sigma**2) * x)
    found = measured(x, y, sigmas)
    assert found is not None
    assert found.update.answer is not None
    exact = 4 / (4 + sigmas**2)
    even = 0.25 / (0.25 + sigmas**2)
    middle = slice(5, 25)
    assert (found.update.answer[middle] > even[middle]).all()
    assert (found.update.answer[middle] < 1.01 * exact[middle]).all()
    kept = found.weights[5] / found.weights[20]
    assert kept > 0.05, "without 1e-2"


def test_a_velocity_is_taken_as_it_is():
    rng = np.random.default_rng(0)
    grid = np.linspace(1.0, 0.05, 20)
    y = rng.normal(size=(3, 1, 20, 64))
    x = np.zeros((3, 20, 64))
    x[:, 0] = rng.normal(size=(3, 64))
    for t in range(19):
        x[:, t + 1] = x[:, t] + (grid[t + 1] - grid[t]) * y[:, 0, t]
    found = measured(x, y, grid)
    assert found is not None
    assert found.update.answer is None
    assert np.allclose(found.weights[:-1], np.diff(grid), atol=1e-6)
