"""Error diffusion: walk a grid once and keep account of what the forecasts did to the sample.

One walk serves many (schedule, forecaster) pairs at once, which is what makes a search over
portfolios of them take milliseconds. Everything is float64 numpy and no model is called.

Notation: T steps, y_t the region's output at step t, `gram[s, t] = mean <y_s, y_t>`, `x[t]` the
time coordinate that the model saw, `c[t]` the weight with which the sampler adds an error of y_t
into the final sample. K is the history length; histories are newest first. L [T] is the error of
the final sample, written as weights over y_0..y_{T-1}.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

SMALLEST_WEIGHT = 0.05
"""Solver weights below this share of their mean are raised to it where an error is diffused."""
SMALLEST_RIDGE = 1e-9
"""Relative to the Gram diagonal; keeps a singular Gram matrix solvable."""
EARLY, EARLY_POWER = 10.0, 8.0
"""Weight of deviations near pure noise, and how fast it falls with time; see `sensitivity`."""
RESPONSE_PER_GAP, LEAST_RESPONSE, MOST_RESPONSE = 0.6, 2.0, 4.0
"""How the model answers to an error in the sample; see `response`."""
LARGEST_SHIFT = 0.5
"""Most by which the sum of a fitted row may differ from the sum of its prior (which is 1)."""


class Forecaster(Protocol):
    """What the portfolio needs of a forecaster."""

    @property
    def name(self) -> str:
        """As written into a plan, with every parameter."""
        ...

    @property
    def history(self) -> int:
        """K, the number of computed outputs that a row may weigh."""
        ...

    @property
    def beta(self) -> float | None:
        """Share of the error so far to diffuse into a step; None if the prior is used as is."""
        ...

    @property
    def ridge(self) -> float:
        """Pull to the prior, relative to the mean of the Gram diagonal."""
        ...

    @property
    def response(self) -> float:
        """Share of the model's `response` that fitted rows reckon with."""
        ...

    def prior(self, last: Indices, count: Indices, step: int, x: Array) -> Array:
        """Weights [P, K] for `step` from the computed steps `last` [P, K], `count` [P] valid."""
        ...

    def rows(self, schedule: Sequence[int], x: Array, c: Array, gram: Array) -> Array:
        """Weights [T, K] on one schedule; see `rows`."""
        ...


@dataclass(frozen=True)
class Trace:
    """What `diffuse` found for P candidates: weights, the error they leave, and its history.

    `weights` [P, T, K]; `error` [P, T], the L of `score`; `passing` [P], the sum over steps of
    `sensitivity` times L_s' G L_s, the squared error in which the sample stood after step s;
    `answer` [P], the squared error that comes of the model's answer to it (`response`).
    """

    weights: Array
    error: Array
    passing: Array
    answer: Array


def diffuse(
    computed: npt.NDArray[np.bool_],
    forecasters: Sequence[Forecaster],
    x: Array,
    c: Array,
    gram: Array,
    *,
    given: Array | None = None,
) -> Trace:
    """Walk the grid once for P (schedule, forecaster) pairs of one kind and history length.

    `computed` [P, T], `x`, `c` [T], `gram` [T, T] symmetric; `forecasters` has P entries of the
    same class and `history`. At a skipped step t with the last computed steps h:

        a  = prior + (G_hh + ridge + N)^-1 (G_h: e - G_hh prior - N (prior + beta u / c_t))
        e  = unit(t) + beta L / c_t,   L += c_t (unit(t) - a on h),   u += c_t a on h

    L takes the computed outputs for those of the uncached run. They are not: where the sample is
    off, the model answers elsewhere. That is unknown in direction but not in size, and is taken as
    noise in each computed output, independent and of variance N_h = r^2 (L' G L + sum u^2 N) at
    step h, r the `response`, with u what the sample has taken of each output so far. So
    weights that are large, alternating or rest on outputs of a sample that was far off are damped,
    and u' N u is what this costs in the end.

    Rows of the first steps may be `given` [S, K]: they are taken as they are, whatever they did to
    the sample is in L, and the others are solved from there.

    Of L only the inner products with the outputs in h are ever needed, so a step costs one
    matrix-vector product of [P, T] with [T].
    """
    batch, steps = computed.shape
    first, depth = forecasters[0], forecasters[0].history
    fitted = first.beta is not None
    beta = np.array([f.beta or 0.0 for f in forecasters])
    scale = max(float(np.mean(np.diagonal(gram))), np.finfo(np.float64).tiny)
    ridge = np.array([max(f.ridge, SMALLEST_RIDGE) for f in forecasters]) * scale
    divisor = lifted(c)

    weights, error = np.zeros((batch, steps, depth)), np.zeros((batch, steps))
    last, count = np.zeros((batch, depth), np.int64), np.zeros(batch, np.int64)
    held = np.zeros((batch, depth))  # <L, y_h>
    square, passing = np.zeros(batch), np.zeros(batch)
    # What the sample takes of each computed output, and the variance of that output's answer.
    use, answer = np.zeros((batch, steps)), np.zeros((batch, steps))
    sharpness = np.array([response(c, n) ** 2 for n in computed.sum(axis=1)])
    heeded = np.array([f.response**2 for f in forecasters])
    slots, heed = np.arange(depth), sensitivity(x)
    for step in range(steps):
        along = error @ gram[:, step]  # <L, y_t>
        hit = computed[:, step]
        last[hit, 1:], last[hit, 0] = last[hit, :-1], step
        held[hit, 1:], held[hit, 0] = held[hit, :-1], along[hit]
        count[hit] += 1
        use[hit, step] = c[step]
        stray = np.maximum(square, 0.0) + np.sum(use**2 * answer, axis=1)
        answer[hit, step] = sharpness[hit] * stray[hit]
        skip = np.flatnonzero(~hit)
        if not len(skip):
            passing += heed[step] * square
            continue
        h, valid = last[skip], slots[None, :] < count[skip, None]
        row = np.where(valid, first.prior(h, count[skip], step, x), 0.0)
        inner = gram[h[:, :, None], h[:, None, :]]
        to_step = gram[h, step]
        if given is not None and step < len(given):
            row = np.where(valid, given[step], 0.0)
        elif fitted:
            back = (beta[skip] / divisor[step])[:, None]
            pull = to_step + back * held[skip]
            astray = heeded[skip, None] * np.take_along_axis(answer[skip], h, 1)
            pull = pull - astray * (row + back * np.take_along_axis(use[skip], h, 1))
            row = row + _correction(inner, pull, row, valid, ridge[skip][:, None] + astray)
        weights[skip, step] = row
        into = np.einsum("pkl,pl->pk", inner, row)
        new = c[step] * (gram[step, step] + np.sum(row * (into - 2 * to_step), axis=1))
        square[skip] += c[step] * (new + 2 * (along[skip] - np.sum(row * held[skip], axis=1)))
        held[skip] += c[step] * (to_step - into)
        error[skip, step] += c[step]
        np.add.at(error, (skip[:, None], h), -c[step] * row)
        np.add.at(use, (skip[:, None], h), c[step] * row)
        passing += heed[step] * square
    return Trace(weights, error, np.maximum(passing, 0.0), np.sum(use**2 * answer, axis=1))


def lifted(c: Array) -> Array:
    """Solver weights to divide by: none below `SMALLEST_WEIGHT` of their mean."""
    floor = SMALLEST_WEIGHT * float(np.mean(np.abs(c)))
    return np.where(np.abs(c) < floor, np.where(c < 0, -floor, floor), c)


def response(c: Array, computed: int) -> float:
    """Where the sample is off by |d|, the model's output is taken to be off by |d| times this.

    From 2 / sum |c| at up to 3.3 steps for each computed one to 4 / sum |c| from 6.7 on: chosen by
    the closed loop of the four small models at 3x, 5x and 7x, where more damps too much below 5x
    and less too little above. Measured in replays, single steps are at 1 to 12 / sum |c|.
    """
    per_gap = RESPONSE_PER_GAP * len(c) / max(computed, 1)
    reckoned = min(max(per_gap, LEAST_RESPONSE), MOST_RESPONSE)
    return reckoned / max(float(np.sum(np.abs(c))), np.finfo(np.float64).tiny)


def sensitivity(x: Array) -> Array:
    """How much an error in the sample after each step counts beside one in the final sample, [T].

    The model answers to a sample that is off by going elsewhere, and the more so near pure noise,
    where the flow still decides what the sample becomes: there a deviation grows on its way. Taken
    as `EARLY (x / x_0)^EARLY_POWER` per unit of relative time, fitted to the closed loop of 286
    plans of three small trained models. On the text-to-image one early deviations explain most
    of the final error (rank correlation at 5x 0.92, without this weight 0.44; plans gain 3 to 5 dB
    at 3x); on the two digit models it is not needed and costs about half a dB.
    """
    step = np.abs(np.append(np.diff(x), x[-1] - x[-2]))
    # Time that rises from noise to data is turned round: what counts is the way still to go.
    noise = x / x[0] if x[0] > x[-1] else (x[-1] + step[-1] - x) / (x[-1] + step[-1] - x[0])
    return EARLY * noise**EARLY_POWER * step / np.sum(step)


def rows(forecaster: Forecaster, schedule: Sequence[int], x: Array, c: Array, gram: Array) -> Array:
    """Weights [T, K] of one forecaster on one schedule of computed step indices.

    Row t weighs the K newest computed outputs before step t, newest first; rows of computed steps,
    and entries for outputs that do not exist yet, are zero.
    """
    computed = np.zeros((1, len(x)), np.bool_)
    computed[0, list(schedule)] = True
    return diffuse(computed, [forecaster], x, c, gram).weights[0]


def error_weights(schedule: Sequence[int], weights: Array, c: Array) -> Array:
    """L [T]: the error that the rows leave in the final sample, as weights over y_0..y_{T-1}."""
    left = np.zeros(len(c))
    history: list[int] = []
    computed = set(schedule)
    for step in range(len(c)):
        if step in computed:
            history.insert(0, step)
            continue
        left[step] += c[step]
        for weight, source in zip(weights[step], history, strict=False):
            left[source] -= c[step] * weight
    return left


def score(left: Array, gram: Array, c: Array) -> Array | float:
    """Return the expected relative rms error of the final sample: sqrt(L' G L / c' G c).

    `left` is L, [T] or [P, T]. The numerator is the mean squared error that the forecasts put into
    the sample if the computed outputs were those of the uncached run; the denominator is the mean
    square of everything that the model adds to the sample over the whole run (for a flow, of
    data minus noise). Where that vanishes, the sum of the single contributions is used.
    """
    reference = reference_power(gram, c)
    square = np.sum((left @ gram) * left, axis=-1)
    return np.sqrt(np.maximum(square, 0.0) / reference)


def expected_error(schedule: Sequence[int], weights: Array, gram: Array, c: Array) -> float:
    """`score` of a plan and the model's answer together: what the closed loop should come to.

    `weights` [T, K] on `schedule`. On the four small models at 3x and 5x this is within a factor of
    two of the measured error, where the open loop alone is up to four times too low.
    """
    left, use, answer = (np.zeros(len(c)) for _ in range(3))
    history: list[int] = []
    computed = set(schedule)
    sharpness = response(c, len(computed)) ** 2
    for step in range(len(c)):
        if step in computed:
            stray = max(float(left @ gram @ left), 0.0) + float(use**2 @ answer)
            answer[step], use[step] = sharpness * stray, c[step]
            history.insert(0, step)
            continue
        left[step] += c[step]
        for weight, source in zip(weights[step], history, strict=False):
            left[source] -= c[step] * weight
            use[source] += c[step] * weight
    total = max(float(left @ gram @ left), 0.0) + float(use**2 @ answer)
    return math.sqrt(total / reference_power(gram, c))


def reference_power(gram: Array, c: Array) -> float:
    """`c' G c`, the mean square of what the model adds to the sample, kept positive."""
    alone = float(np.sum(c**2 * np.abs(np.diagonal(gram))))
    return max(float(c @ gram @ c), 1e-12 * alone, np.finfo(np.float64).tiny)


def _correction(
    inner: Array, pull: Array, prior: Array, valid: npt.NDArray[np.bool_], ridge: Array
) -> Array:
    """(G_hh + ridge)^-1 (pull - G_hh prior), limited so that no row can run away.

    `inner` [P, K, K], the others [P, K]. A vanishing Gram matrix gives no correction.
    """
    depth = inner.shape[1]
    both = valid[:, :, None] & valid[:, None, :]
    system = np.where(both, inner, 0.0)
    tiny = np.finfo(np.float64).tiny ** 0.5
    diagonal = np.where(valid, np.maximum(ridge, tiny), 1.0)
    system[:, np.arange(depth), np.arange(depth)] += diagonal
    wanted = np.where(valid, pull - np.einsum("pkl,pl->pk", np.where(both, inner, 0.0), prior), 0.0)
    change = np.linalg.solve(system, wanted[:, :, None])[:, :, 0]
    change = np.where(np.isfinite(change), change, 0.0)
    size = np.sum(np.abs(change), axis=1)
    shift = np.abs(np.sum(change, axis=1))
    room = 1.0 + np.sum(np.abs(prior), axis=1)
    limit = np.minimum(room / np.maximum(size, tiny), LARGEST_SHIFT / np.maximum(shift, tiny))
    return change * np.minimum(limit, 1.0)[:, None]
