"""Forecasters: what they must reproduce exactly, and that none of them can run away."""

from __future__ import annotations

import numpy as np
import pytest
from ditcache.passes.accounts import EXPECTED, answers
from ditcache.passes.error_diffusion import (
    diffuse,
    error_weights,
    expected_error,
    reference_power,
    score,
    sensitivity,
)
from ditcache.passes.forecasters import EDF, Lagrange, Taylor
from ditcache.passes.schedules import uniform_coordinate
from ditcache.passes.solver_weights import from_grid
from hypothesis import given, settings
from hypothesis import strategies as st

EVERY = [Taylor(0), Taylor(1), Taylor(2), Lagrange(1), Lagrange(2), EDF(2), EDF(3), EDF(4, 0.6)]


def apply(schedule, weights, y):
    """Outputs [T, m] with the skipped ones forecast."""
    made, history = np.array(y), []
    for step in range(len(y)):
        if step in schedule:
            history.insert(0, y[step])
        else:
            made[step] = sum(w * h for w, h in zip(weights[step], history, strict=False))
    return made


@pytest.mark.parametrize("forecaster", EVERY, ids=lambda f: f.name)
def test_constant_outputs_are_forecast_exactly(forecaster):
    x = np.linspace(1, 0.05, 20)
    c, y = np.full(20, -0.05), np.full((20, 7), 3.0)
    schedule = (0, 1, 4, 9, 15)
    weights = forecaster.rows(schedule, x, c, y @ y.T / 7)
    assert np.allclose(apply(schedule, weights, y), y, rtol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_lagrange_reproduces_polynomials_in_time(order):
    x = np.sort(np.random.default_rng(0).uniform(0, 1, 12))[::-1].copy()
    y = np.stack([x**p for p in range(order + 1)], axis=1)
    schedule = (*range(order + 1), 7)
    weights = Lagrange(order).rows(schedule, x, np.full(12, -0.1), y @ y.T)
    assert np.allclose(apply(schedule, weights, y), y, rtol=1e-7)


def test_lagrange_through_history_of_edf_is_exact_on_polynomials():
    """Where the prior is exact and nothing has accumulated, the fit leaves it alone."""
    x = np.linspace(1, 0.05, 15)
    y = np.stack([x**0, x], axis=1)
    schedule = (0, 1, 5, 10)
    weights = EDF(2, 0.5).rows(schedule, x, np.full(15, -0.05), y @ y.T)
    assert np.allclose(apply(schedule, weights, y), y, atol=1e-6)


def test_taylor_matches_the_published_recursion():
    """Derivatives kept as TaylorSeer keeps them: differences over the last interval."""
    rng, schedule = np.random.default_rng(3), (0, 1, 4, 9)
    y = rng.normal(size=(12, 5))
    weights = Taylor(2).rows(schedule, np.linspace(1, 0, 12), np.ones(12), y @ y.T)
    kept: list[np.ndarray] = []
    previous = None
    for step in range(12):
        if step in schedule:
            fresh = [y[step]]
            for order in range(2):
                if previous is not None and len(kept) > order:
                    fresh.append((fresh[order] - kept[order]) / (step - previous))
            kept, previous = fresh, step
        else:
            ahead = step - previous
            expected = kept[0] + sum(
                d * ahead**i / (1, 1, 2)[i] for i, d in enumerate(kept) if i > 0
            )
            got = apply(schedule, weights, y)[step]
            assert np.allclose(got, expected)


def test_error_weights_are_what_the_forecasts_do_to_the_sample(synthetic):
    grid = synthetic.grid(30)
    y = synthetic.outputs(grid, 1)[0]
    x, c = np.asarray(grid), np.diff(np.append(grid, 0.0))
    g, schedule = y @ y.T / y.shape[1], (0, 1, 2, 9, 17, 25)
    weights = EDF().rows(schedule, x, c, g)
    left = error_weights(schedule, weights, c)
    direct = c @ y - c @ apply(schedule, weights, y)
    assert np.allclose(left @ y, direct, atol=1e-12)
    assert score(left, g, c) == pytest.approx(
        np.linalg.norm(direct) / np.linalg.norm(c @ y), rel=1e-6
    )


def test_many_at_once_equal_one_by_one(synthetic):
    grid = synthetic.grid(24)
    x, c = np.asarray(grid), np.diff(np.append(grid, 0.0))
    g = synthetic.gram(synthetic.outputs(grid, 2))
    sets = [(0, 1, 6, 12, 18), (0, 4, 9, 14, 19), (0, 1, 2, 3, 23)]
    kinds = [EDF(3, 0.1), EDF(3, 0.9), EDF(3, 0.0)]
    computed = np.zeros((3, 24), bool)
    for row, chosen in zip(computed, sets, strict=True):
        row[list(chosen)] = True
    together = diffuse(computed, kinds, x, c, g)
    for i in range(3):
        alone = kinds[i].rows(sets[i], x, c, g)
        assert np.allclose(together.weights[i], alone, atol=1e-12)
        left = error_weights(sets[i], alone, c)
        assert np.allclose(together.error[i], left, atol=1e-12)
        # the running account of squared errors against its definition
        parts = [error_weights_until(sets[i], alone, c, s + 1) for s in range(24)]
        squares = np.array([part @ g @ part for part in parts])
        expected = sensitivity(x) @ squares
        assert together.passing[i] == pytest.approx(expected, rel=1e-6, abs=1e-14)


def error_weights_until(schedule, weights, c, stop):
    cut = np.where(np.arange(len(c)) < stop, c, 0.0)
    return error_weights(schedule, weights, cut)


def test_diffusion_beats_plain_least_squares(synthetic):
    """Least squares alone leans to one side; feeding its error back is the point of the method."""
    grid = synthetic.grid(50)
    x, c = np.asarray(grid), np.diff(np.append(grid, 0.0))
    g = synthetic.gram(synthetic.outputs(grid, 4))
    schedule = uniform_coordinate(x, 10, last=True)

    def error(beta):
        return score(error_weights(schedule, EDF(3, beta).rows(schedule, x, c, g), c), g, c)

    assert error(0.3) < 0.5 * error(0.0)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_rows_stay_bounded_on_any_gram_matrix(data):
    """Random, singular, tiny, huge and noisy (indefinite) matrices, schedules and solvers."""
    steps = data.draw(st.integers(4, 24))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rank = data.draw(st.integers(0, 6))
    y = rng.normal(size=(steps, rank)) * 10.0 ** data.draw(st.integers(-12, 12))
    noise = data.draw(st.sampled_from([0.0, 1e-6, 0.1])) * np.mean(y**2 if rank else np.zeros(1))
    g = y @ y.T + noise * rng.normal(size=(steps, steps))
    g = (g + g.T) / 2
    x = np.sort(rng.uniform(0, 1, steps))[::-1].copy()
    c = rng.normal(size=steps) * 10.0 ** rng.integers(-3, 2)
    picked = data.draw(st.sets(st.integers(1, steps - 1), min_size=1))
    schedule = (0, *sorted(picked))
    k = data.draw(st.integers(1, 4))
    beta = data.draw(st.sampled_from([0.0, 0.3, 0.9]))
    fitted = EDF(k, beta).rows(schedule, x, c, g)
    prior = Lagrange(k - 1).rows(schedule, x, c, g)
    assert np.isfinite(fitted).all()
    assert (np.abs(fitted.sum(1) - prior.sum(1)) <= 0.5 + 1e-6 * np.abs(prior).sum(1)).all()
    assert (np.abs(fitted).sum(1) <= 1 + 2 * np.abs(prior).sum(1) + 1e-9).all()
    for step in range(steps):
        before = sum(s < step for s in schedule)
        if step in schedule:
            assert not fitted[step].any()
        else:
            assert not fitted[step, before:].any()
            assert prior[step].sum() == pytest.approx(1.0, rel=1e-6 * (1 + np.abs(prior).max()))


def test_the_models_answer_is_reckoned_with(synthetic):
    """On a model that takes errors back, rows solved for that end nearer, as is expected."""
    x = np.asarray(synthetic.grid(50))
    c = from_grid(x.tolist())
    force = np.asarray(synthetic.outputs(tuple(x.tolist()), 24, seed=3)).reshape(24, 50, -1)
    g = np.einsum("nsm,ntm->st", force, force) / force[:, 0].size
    schedule = (0, 5, 12, 20, 28, 36, 42, 47)
    plain = EDF(4, 0.8, response=0.0).rows(schedule, x, c, g)
    heedful = EDF(4, 0.8, response=1.0).rows(schedule, x, c, g)

    def off(rows, answer):
        """Squared error of a sample whose outputs change by `answer` times what it is off."""
        d, held = np.zeros_like(force[:, 0]), []
        for t in range(50):
            if t in schedule:
                held.insert(0, force[:, t] + answer[t] * d)
                made = held[0]
            else:
                made = sum(w * h for w, h in zip(rows[t], held, strict=False))
            d = d + c[t] * (made - force[:, t])
        return float(np.mean(d**2) / reference_power(g, c))

    expected = {}
    for name, rows in (("plain", plain), ("heedful", heedful)):
        each = [off(rows, answer) for answer in answers(c, EXPECTED)]
        expected[name] = expected_error(schedule, rows, g, c)
        assert expected[name] == pytest.approx(np.sqrt(np.mean(each)), rel=1e-6)
        assert each[1] == pytest.approx(score(error_weights(schedule, rows, c), g, c) ** 2)
    assert expected["heedful"] < expected["plain"]


def test_more_outputs_are_less_stable():
    """Where the model takes errors back, extrapolation from more outputs makes them grow more."""
    x = np.linspace(1.0, 0.02, 50)
    c, schedule = from_grid(x.tolist()), tuple(range(0, 50, 8))
    rng = np.random.default_rng(0)
    y = rng.normal(size=(3, 50, 4)) * 1e-3 + np.exp(-x)[None, :, None]
    g = np.einsum("nsm,ntm->st", y, y) / y[:, 0].size
    growth = []
    for order in (0, 1, 2, 3):
        rows = Lagrange(order).rows(schedule, x, c, g)
        growth.append(
            expected_error(schedule, rows, g, c) / score(error_weights(schedule, rows, c), g, c)
        )
    assert growth[1] < growth[2] < growth[3]
