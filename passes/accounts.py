"""Accounts: what forecasts did to the sample so far, under every answer that the model may give.

The state of the walks in `error_diffusion`, for P candidates and S answers at once. Vectors are
weights over the outputs y_0..y_{T-1} of the uncached run, their inner products those of the Gram
matrix; what is computed under a plan is such a vector as well. In most steps only inner products
are needed, and those are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

ANSWERS = (0.0, 3.0, 6.0)
"""Rates, over a whole run, at which the model may take an error back; see `answers`."""
EXPECTED = (-2.0, *ANSWERS)
"""For what is told of a plan also that errors may grow, as they do where the sample is decided."""


def answers(c: Array, rates: Sequence[float] = ANSWERS) -> Array:
    """What the model may answer to a sample that is off by d: d times these, [S, T].

    Each of `rates` over sum c, against the error (|c_t| times it is at most 1, so that one step
    does not undo more than all of it). That is the test equation by which solvers are judged
    (Dahlquist 1963): extrapolation from K outputs is stable only while what a gap does to an
    error, the answer times the gap, is small, and the less of it the larger K is.
    """
    total = float(np.sum(c)) or 1.0
    most = 1.0 / np.maximum(np.abs(c), np.finfo(np.float64).tiny)
    return np.stack([np.clip(-q / total, -most, most) * np.ones(len(c)) for q in rates])


class Accounts:
    """Errors L, and the last K computed outputs v, of `batch` candidates.

    `error` [P, S, T] is L, `square` [P, S] its square norm. Of the K newest outputs, newest
    first: `inner` [P, S, K, K] their inner products, `held` [P, S, K] those with L, `toward(t)`
    those with y_t. `last` [P, K] are their steps, `count` [P] says how many there are.
    """

    def __init__(
        self,
        batch: int,
        depth: int,
        c: Array,
        gram: Array,
        rates: Sequence[float] = ANSWERS,
    ) -> None:
        self._c, self._gram, self._rates = c, gram, answers(c, rates)
        many, steps = self._rates.shape
        self.error = np.zeros((batch, many, steps))
        self.square, self.held = np.zeros((batch, many)), np.zeros((batch, many, depth))
        self.inner = np.zeros((batch, many, depth, depth))
        self.last, self.count = np.zeros((batch, depth), np.int64), np.zeros(batch, np.int64)
        self._made = np.zeros((batch, many, depth, steps))
        self._image = np.zeros((batch, many, depth, steps))  # the made ones' products with each y

    @property
    def answers(self) -> int:
        """S."""
        return len(self._rates)

    def toward(self, step: int) -> Array:
        """Inner products [P, S, K] of the last computed outputs with y_step."""
        return self._image[:, :, :, step]

    def compute(self, hit: Indices, step: int) -> None:
        """Candidates `hit` compute at `step`: v = unit(step) - answer L, L += c answer L."""
        rate, left, size = self._rates[:, step], self.error[hit, :, :step], self.square[hit]
        # L and the outputs made so far weigh steps before this one, and what is ahead is what their
        # images are needed for.
        bent = left @ self._gram[:step, step:]
        along = bent[:, :, 0]
        inner, held = self.inner[hit], self.held[hit]
        image, made = self._image[hit, :, :-1, step:], self._made[hit, :, :-1, :step]
        cross = image[:, :, :, 0] - rate[:, None] * held[:, :, :-1]
        self.last[hit, 1:], self.last[hit, 0] = self.last[hit, :-1], step
        self.count[hit] += 1
        self._made[hit, :, 1:, :step], self._made[hit, :, 0, :step] = made, -rate[:, None] * left
        self._made[hit, :, :, step] = np.arange(self.held.shape[2]) == 0
        self._image[hit, :, 1:, step:] = image
        self._image[hit, :, 0, step:] = self._gram[step, step:] - rate[:, None] * bent
        self.inner[hit, :, 1:, 1:] = inner[:, :, :-1, :-1]
        self.inner[hit, :, 0, 1:] = self.inner[hit, :, 1:, 0] = cross
        self.inner[hit, :, 0, 0] = self._gram[step, step] - rate * (2 * along - rate * size)
        kept = 1.0 + self._c[step] * rate
        self.held[hit, :, 1:] = held[:, :, :-1] * kept[:, None]
        self.held[hit, :, 0] = (along - rate * size) * kept
        self.square[hit] = size * kept**2
        self.error[hit, :, :step] = left * kept[:, None]

    def forecast(self, skip: npt.NDArray[np.bool_], step: int, row: Array) -> None:
        """Candidates where `skip` [P] make y_step by `row` [P, K]: L += c (unit(step) - row v)."""
        to_step = self.toward(step)
        row = row * skip[:, None]
        weight = self._c[step] * skip[:, None]
        along = self.error[:, :, :step] @ self._gram[:step, step]
        into = np.einsum("pskl,pl->psk", self.inner, row)
        new = np.einsum("pk,psk->ps", row, into - 2 * to_step) + self._gram[step, step]
        by_row = np.einsum("pk,psk->ps", row, self.held)
        self.square += weight * (weight * new + 2 * (along - by_row))
        self.held += weight[:, :, None] * (to_step - into)
        moved = row[:, None, None, :] @ self._made[:, :, :, :step]
        self.error[:, :, :step] -= self._c[step] * moved[:, :, 0]
        self.error[:, :, step] = weight
