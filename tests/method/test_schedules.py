"""Schedules: exact counts, sound sets, and the dynamic programme against brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from ditcache.passes import schedules
from ditcache.passes.schedules import standard_schedules
from ditcache.passes.solver_weights import from_grid
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 70), st.data())
def test_every_schedule_has_exactly_n_steps_from_zero(steps, data):
    n = data.draw(st.integers(2, steps - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    x = np.sort(rng.uniform(0.001, 1, steps))[::-1].copy()
    y = rng.normal(size=(steps, 5)).cumsum(0)
    for name, chosen in standard_schedules(y @ y.T, x, from_grid(x.tolist()), n).items():
        assert len(chosen) == n, name
        assert chosen[0] == 0, name
        assert chosen[-1] < steps, name
        assert list(chosen) == sorted(set(chosen)), name


def test_each_named_schedule_computes_its_published_steps():
    assert schedules.uniform_index(50, 10) == tuple(range(0, 50, 5))
    assert schedules.uniform_index(50, 8, last=True) == tuple(range(0, 50, 7))
    assert schedules.interval(50, 25) == tuple(range(0, 50, 2))
    assert schedules.interval(10, 4) == (0, 3, 6, 9)
    assert schedules.interval(10, 6) == (0, 1, 2, 4, 6, 8)
    x = 1 - np.arange(10) / 10
    assert schedules.uniform_coordinate(x, 5) == (0, 2, 4, 6, 8)
    assert schedules.uniform_coordinate(x, 4, last=True) == (0, 3, 6, 9)


def test_the_portfolio_tries_these_schedules():
    """Plans are made of them: one that is added, left out or named anew changes what is planned."""
    steps = 50
    x = np.linspace(1.0, 0.02, steps) ** 2
    y = np.random.default_rng(0).normal(size=(steps, 60)).cumsum(0)
    found = standard_schedules(y @ y.T, x, from_grid(x.tolist()), 12)
    assert list(found) == [
        "uniform index",
        "uniform index to last",
        "interval",
        "uniform time",
        "uniform time to last",
        "first 2, uniform index",
        "first 2, uniform time",
        "first 3, uniform index",
        "first 3, uniform time",
        "balanced 0.33",
        "balanced 0.5",
        "optimal 1",
        "optimal 0.5",
    ]


def test_time_uniform_steps_crowd_where_the_shifted_grid_moves_fast(synthetic):
    chosen = schedules.uniform_coordinate(np.asarray(synthetic.grid(50, 5.0)), 10, last=True)
    gaps = np.diff(chosen)
    assert gaps[0] > 3 * gaps[-1]


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_dynamic_programme_equals_brute_force(synthetic, n, power):
    grid = synthetic.grid(9)
    x, c = np.asarray(grid), from_grid(grid)
    g = synthetic.gram(synthetic.outputs(grid, 1))
    cost = schedules.segment_errors(g, x, c) ** power

    def total(chosen):
        ends = (*chosen[1:], 9)
        befores = (chosen[0], *chosen[:-1])
        return sum(cost[i, j, k] for i, j, k in zip(befores, chosen, ends, strict=True))

    best = min(total((0, *rest)) for rest in combinations(range(1, 9), n - 1))
    assert total(schedules.optimal(g, x, c, n, power=power)) == pytest.approx(best)


def test_segment_errors_against_the_definition(synthetic):
    grid = synthetic.grid(12)
    x, c = np.asarray(grid), from_grid(grid)
    y = synthetic.outputs(grid, 1)[0]
    cost = schedules.segment_errors(y @ y.T, x, c)
    for i, j, k in [(0, 0, 4), (0, 3, 7), (2, 5, 12), (1, 2, 3)]:
        error = np.zeros(y.shape[1])
        for t in range(j + 1, k):
            a = 0.0 if i == j else (x[t] - x[j]) / (x[i] - x[j])
            error += c[t] * (y[t] - a * y[i] - (1 - a) * y[j])
        assert cost[i, j, k] == pytest.approx(error @ error, rel=1e-6, abs=1e-9)
