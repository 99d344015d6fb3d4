"""The two-step solver that a budget may be spent on instead of a cache."""

from __future__ import annotations

import numpy as np
import torch

from bench.solvers import AdamsBashforth2, EvenAdamsBashforth2


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
