"""Refit and merit on a sampler whose model answers to where the sample is."""

from __future__ import annotations

import numpy as np
import pytest
from ditcache.passes.forecasters import Lagrange
from ditcache.passes.measured_solver import Update, measured
from ditcache.passes.refit import Courses, Reference, merit, refit
from ditcache.passes.solver_weights import from_grid

STEPS, COMPUTED, K = 30, (0, 1, 5, 10, 15, 20, 25), 3


def velocity(x, t):
    """A field that bends, and reacts to the sample."""
    return np.tanh(2 * x + np.sin(3 * t)) + x * np.cos(2 * t)


def walk(x0, grid, c, weights=None):
    """Courses [n, T, m], [n, 1, T, m] of one branch; forecast where not computed."""
    x, xs, ys, held = x0.copy(), [], [], []
    for t in range(STEPS):
        xs.append(x)
        if weights is None or t in COMPUTED:
            y = velocity(x, grid[t])
            held.insert(0, y)
            ys.append(y)
        else:
            y = sum(w * h for w, h in zip(weights[t], held, strict=False))
            ys.append(np.full_like(x, np.nan))
        x = x + c[t] * y
    courses = Courses(np.stack(xs, 1), np.stack(ys, 1)[:, None])
    return courses, x


@pytest.fixture
def setting(synthetic):
    grid = np.asarray(synthetic.grid(STEPS))
    c = from_grid(grid.tolist())
    update = Update(np.ones((STEPS, 1)), c[None, :, None])
    x0 = np.random.default_rng(0).normal(size=(6, 40))
    courses, final = walk(x0, grid, c)
    reference = Reference.of(courses, update)
    assert np.allclose(reference.final, final)
    prior = Lagrange(K - 1).rows(COMPUTED, grid, c, np.eye(STEPS))
    return grid, c, x0, reference, prior


def test_errors_are_those_of_the_final_sample(setting):
    grid, c, x0, reference, prior = setting
    replay, final = walk(x0, grid, c, prior)
    assert np.allclose(replay.end(reference.update, COMPUTED, prior), final)
    wanted = np.sum((final - reference.final) ** 2, 1)
    wanted = wanted / np.mean(np.sum((reference.final - x0) ** 2, 1))
    assert np.allclose(reference.errors(final), wanted)


def test_refitting_brings_the_sample_closer_and_settles(setting):
    grid, c, x0, reference, prior = setting
    weights, found = prior, []
    for _ in range(5):
        replay, final = walk(x0, grid, c, weights)
        found.append(float(reference.errors(final).mean()))
        weights = refit(reference, replay, COMPUTED, K, prior)
    assert found[2] < 0.8 * found[0]
    assert found[4] < 1.5 * found[2]


def test_refitted_weights_help_on_samples_that_they_were_not_fitted_to(setting):
    grid, c, x0, reference, prior = setting
    weights = prior
    for _ in range(2):
        weights = refit(reference, walk(x0, grid, c, weights)[0], COMPUTED, K, prior)
    other = np.random.default_rng(1).normal(size=(8, 40))
    wanted = walk(other, grid, c)[1]

    def off(rows):
        return np.sum((walk(other, grid, c, rows)[1] - wanted) ** 2)

    assert off(weights) < 0.7 * off(prior)


def test_a_subset_of_the_generations_is_laid_beside_its_own_reference(setting):
    grid, c, x0, reference, prior = setting
    whole, final = walk(x0, grid, c, prior)
    part = Courses(whole.x[2:4], whole.y[2:4])
    assert np.allclose(reference.errors(final[2:4], start=2), reference.errors(final)[2:4])
    alone = refit(reference, part, COMPUTED, K, prior, start=2)
    assert np.isfinite(alone).all()
    assert not np.allclose(alone, refit(reference, whole, COMPUTED, K, prior))


def test_merit_sees_the_typical_and_more_so_the_worst():
    even = np.full(10, 1e-4)
    tail = np.append(np.full(9, 0.5e-4), 100 * 1e-4)
    assert merit(even) == pytest.approx(-40.0)
    assert merit(tail) > merit(even) + 5
    assert merit(even / 10) == pytest.approx(-50.0)
    assert np.isfinite(merit(np.zeros(3)))


def test_a_sampler_with_memory_is_followed(setting):
    """Adams and Bashforth's second-order steps: measured from its calls, and refitted to."""
    grid, c, x0, _, prior = setting

    def run(start, weights=None):
        x, xs, ys, before = start.copy(), [], [], None
        for t in range(STEPS):
            xs.append(x)
            computed = weights is None or t in COMPUTED
            held = [ys[s] for s in reversed(COMPUTED) if s < t]
            y = (
                velocity(x, grid[t])
                if computed
                else sum(w * h for w, h in zip(weights[t], held, strict=False))
            )
            ys.append(y)
            # The last step is taken as diffusers' samplers take it, without memory.
            slope = y if before is None or t == STEPS - 1 else 1.5 * y - 0.5 * before
            x, before = x + c[t] * slope, y
        seen = np.stack(ys, 1)[:, None]
        if weights is not None:
            seen[:, :, [t for t in range(STEPS) if t not in COMPUTED]] = np.nan
        return Courses(np.stack(xs, 1), seen), x

    courses, final = run(x0)
    found = measured(courses.x, courses.y, grid.tolist())
    assert found is not None
    assert found.residual < 1e-6
    assert found.weights[-2] == pytest.approx(1.5 * c[-2], rel=1e-3)
    reference = Reference.of(courses, found.update)
    assert np.abs(reference.final - final).max() < 0.02 * np.abs(final - courses.x[:, -1]).max()
    weights = prior
    for _ in range(3):
        weights = refit(reference, run(x0, weights)[0], COMPUTED, K, prior)
    assert np.sum((run(x0, weights)[1] - final) ** 2) < 0.7 * np.sum(
        (run(x0, prior)[1] - final) ** 2
    )
