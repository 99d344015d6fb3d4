"""The two-step solver that a budget may be spent on instead of a cache."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler

from bench.solvers import AdamsBashforth2, EulerAdamsBashforth2, EvenAdamsBashforth2


def test_two_step_solver_is_of_second_order():
    def error(steps, multistep):
        velocity = multistep or (lambda v: v)
        x, h = torch.ones((), dtype=torch.float64), 1 / steps
        for _ in range(steps):
            x = x + h * velocity(-x)
        return abs(float(x) - np.exp(-1))

    ratio = error(40, EvenAdamsBashforth2()) / error(80, EvenAdamsBashforth2())
    assert 3.6 < ratio < 4.4
    assert 1.8 < error(40, None) / error(80, None) < 2.2


def test_scheduler_gives_the_same_on_an_even_grid():
    sigmas = torch.linspace(1, 0, 11)[:-1].tolist()
    scheduler = AdamsBashforth2(shift=1.0)
    scheduler.set_timesteps(sigmas=sigmas)
    multistep = EvenAdamsBashforth2()
    x = y = torch.linspace(0.5, 2, 4)
    for t in scheduler.timesteps:
        x = scheduler.step(x.sin(), t, x, return_dict=False)[0]
        y = y - 0.1 * multistep(y.sin())
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_two_step_solver_on_the_sigmas_of_the_euler_scheduler():
    """dx/dsigma = x^2 / sigma from x(2) = 2: x(1) = 1 / (1/2 + log 2)."""

    def error(kind, steps):
        scheduler = kind(prediction_type="epsilon")
        scheduler.set_timesteps(steps)
        scheduler.sigmas = torch.linspace(2.0, 1.0, steps + 1, dtype=torch.float64)
        x = torch.full((1,), 2.0, dtype=torch.float64)
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            scheduler.scale_model_input(x, t)
            slope = x.square() / sigma
            x = scheduler.step(slope.float(), t, x.float()).prev_sample.double()
        return abs(float(x) - 1 / (0.5 + np.log(2)))

    assert error(EulerAdamsBashforth2, 40) < 0.1 * error(EulerDiscreteScheduler, 40)
    assert 3.3 < error(EulerAdamsBashforth2, 40) / error(EulerAdamsBashforth2, 80) < 4.7
