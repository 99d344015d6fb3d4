"""A sampler that clips, walked through on elements of recorded generations, without the model.

What a plan does to the sample is linear in the outputs only as long as no element changes between
clipped and free. So plans for such a sampler are compared by what they do to single elements: the
clamp that was fitted to them makes the steps, and at a computed step the output follows the sample
by what was measured of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .clamp import Clamp
from .error_diffusion import Array

ANSWERS = (0.9, 1.0)
"""Shares of the measured answer that outputs are taken to follow the sample by."""
MOST, MOST_NUMBERS = 512, 65536
"""Elements that are kept, and how many numbers their courses may have."""
FAR = 1e6
"""Squares beyond this count as this, so that a course that runs away compares as the worst."""


@dataclass(frozen=True, eq=False)
class ClippedRun:
    """Courses of N elements through a sampler that clips.

    Latents `x` and outputs as the sampler saw them, `y`, float32 [T, N]; `answer` [T] is how far
    an output follows the sample (`answer_of`).
    """

    clamp: Clamp
    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32]
    answer: Array

    def weights(self) -> Array:
        """How much an error at each step weighs in the last elements: c [T], rms over elements.

        Each element has an impulse response of its own, through the steps at which it was clipped
        (where the latents are forgotten and the output is all that the next ones are made of) and
        free. Their mean would be of no use: it changes its sign in mid-run.
        """
        k, q, m, s, r = (column[:, None] for column in self.clamp.rows.T)
        x, y = self._exact
        free = np.abs(k * x - q * y) < m
        carry, gain = r + np.where(free, k, 0.0), s - np.where(free, q, 0.0)
        left, weights = np.ones(x.shape[1]), np.zeros(x.shape)
        for t in range(len(x) - 1, -1, -1):
            weights[t] = gain[t] * left
            left = carry[t] * left + self.answer[t] * weights[t]
        return -np.sqrt(np.mean(weights**2, axis=1))

    def errors(self, computed: npt.NDArray[np.bool_], rows: Array) -> Array:
        """Squared relative errors [P] of the last elements under P plans.

        `computed` [P, T], `rows` [P, T, K] as in a plan. Mean over `ANSWERS` of the elements' mean
        squared distance to their uncached course, over their mean square there.
        """
        wanted = self._made[-1]
        power = max(float(np.mean(wanted**2)), np.finfo(np.float64).tiny)
        ends = [self._end(computed, rows, share) for share in ANSWERS]
        off = [np.mean(np.minimum((end - wanted) ** 2, FAR), axis=1) for end in ends]
        return np.nan_to_num(np.mean(off, axis=0) / power, nan=FAR)

    def error(self, computed: Sequence[int], rows: npt.ArrayLike) -> float:
        """Expected relative rms error of the sample under one plan."""
        mask = np.zeros((1, len(self.x)), np.bool_)
        mask[0, list(computed)] = True
        return float(np.sqrt(self.errors(mask, np.asarray(rows, dtype=np.float64)[None])[0]))

    def thinned(self) -> ClippedRun:
        """As many of the elements, evenly taken, as are worth to be kept."""
        steps, here = self.x.shape
        most = max(min(MOST, MOST_NUMBERS // steps), 1)
        kept = np.unique(np.linspace(0, here - 1, min(most, here)).round().astype(np.int64))
        x, y = (np.ascontiguousarray(a[:, kept]) for a in (self.x, self.y))
        return ClippedRun(self.clamp, x, y, self.answer)

    def merged(self, other: ClippedRun, share: float) -> ClippedRun:
        """Both together, the clamp of this one; `share` is its part of all samples."""
        x, y = (np.concatenate(a, axis=1) for a in ((self.x, other.x), (self.y, other.y)))
        answer = share * self.answer + (1.0 - share) * other.answer
        return ClippedRun(self.clamp, x, y, answer).thinned()

    def _end(self, computed: npt.NDArray[np.bool_], rows: Array, share: float) -> Array:
        plans, steps, depth = rows.shape
        (whole, outputs), made = self._exact, self._made
        x, held = np.repeat(whole[:1], plans, axis=0), np.zeros((plans, depth, whole.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):
            for t in range(steps):
                hit = np.flatnonzero(computed[:, t])
                y = np.einsum("pk,pkn->pn", rows[:, t], held)
                if len(hit):
                    y[hit] = outputs[t] + share * self.answer[t] * (x[hit] - whole[t])
                    held[hit, 1:] = held[hit, :-1]
                    held[hit, 0] = y[hit]
                # What the clamp leaves of the recorded courses (rounding) is no deviation.
                after = whole[t + 1] if t + 1 < steps else made[t]
                x = after + (self.clamp.after(t, x, y) - made[t])
        return x

    @cached_property
    def _exact(self) -> tuple[Array, Array]:
        return self.x.astype(np.float64), self.y.astype(np.float64)

    @cached_property
    def _made(self) -> list[Array]:
        """The uncached latents after each step, [N], as the clamp makes them."""
        return [
            self.clamp.after(t, x, y) for t, (x, y) in enumerate(zip(*self._exact, strict=True))
        ]


def answer_of(x: Array, y: Array, clamp: Clamp) -> Array:
    """How far the outputs follow the sample, [T]: <x_t, y_t> / <x_t, x_t> of `x`, `y` [n, T, m].

    Of predictions of the noise no more than at the first step, where the latents are all noise:
    towards the end that ratio grows where the data is small, but errors are spread like the largest
    of the data, and to those the answer falls (replays of two small models: 0.6 and 1.2 in the last
    steps, where the ratio is 2.4 and 0.4).
    """
    along, size = (np.einsum("ntm,ntm->t", x, a) for a in (y, x))
    answer = along / np.maximum(size, np.finfo(np.float64).tiny)
    return answer if clamp.rows[:, 4].any() else np.minimum(answer, answer[0])
