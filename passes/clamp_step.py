"""One step of a sampler that clips, fitted to single elements: which were clipped, and its numbers.

x' = clip(k x - sum_b q_b y_b, -m, m) + sum_b s_b y_b + r x
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .error_diffusion import Array

EXPLAINED = 1e-4
"""Most that the fit may leave of the updates of elements that it has not seen, rms over rms."""
SPARE = 3
"""Elements on either side of the limit beyond what it takes to solve for their numbers."""
SHARES = (0.98, 0.9, 0.75, 0.5, 0.3, 0.15, 0.07, 0.03)
"""Shares of elements first taken to be free, where the step after is no guide."""
ROUNDS, TRIES = 30, 1024

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ClampStep:
    """One step of N elements: latents `x` and `after` [N], outputs `y` [B, N].

    `rounding` is the relative precision of the latents. The step's numbers are k, q_1..q_B, m,
    s_1..s_B, r. Which elements were clipped is guessed, the numbers follow by least squares, and
    they say what was clipped.
    """

    x: Array
    y: Array
    after: Array
    rounding: float

    @property
    def moved(self) -> float:
        """The update's squares."""
        return float(np.sum((self.after - self.x) ** 2))

    @property
    def noise(self) -> float:
        """What rounded latents leave of the update, rms over rms."""
        size = float(np.sum(self.after**2))
        return self.rounding * float(np.sqrt(size / self.moved)) if self.moved > 0.0 else 0.0

    def fitted(self, like: Array | None) -> tuple[Array, float]:
        """The numbers, and what they leave of the update, rms over rms.

        `like` are k, q and m as they may be, from steps beside it. Latents beyond the limit (r) are
        tried where it takes them.
        """
        best, least = np.zeros(2 * len(self.y) + 3), np.inf
        if not self.moved > 0.0:
            return best, np.inf
        enough = (0.1 * EXPLAINED + 2.0 * self.noise) ** 2 * self.moved
        for with_latents in (False, True):
            for estimate, free in self._guesses(like, with_latents):
                row, left = self._settled(estimate, free, with_latents)
                if left < least:
                    best, least = row, left
                if least > enough:
                    continue
                if with_latents:  # perhaps found by chance, with what it does not take
                    row, left = self._settled(*self._split(best), False)
                    best, least = (row, left) if left <= enough else (best, least)
                return best, float(np.sqrt(least / self.moved))
        return best, float(np.sqrt(least / self.moved))

    def _guesses(self, like: Array | None, with_latents: bool) -> Iterator[tuple[Array, Mask]]:
        """Estimates of the data, of which the sign counts, and which of them are within limits."""
        x, y = self.x, self.y
        if like is not None:
            estimate = like[0] * x - like[1] * y[0]
            yield estimate, np.abs(estimate) < like[2]
        # In most parametrisations the data is what the latents have that the outputs have not.
        noise = np.linalg.lstsq(y.T, x, rcond=1e-10)[0]
        estimate = x - noise @ y
        free = np.full(len(x), True)
        yield estimate, free
        for _ in range(SPARE):  # a few clipped ones stand out among many free
            table = np.stack([x, *y], axis=1)
            row = np.linalg.lstsq(table[free], self.after[free], rcond=1e-10)[0]
            free = free.copy()
            free[np.argmax(np.where(free, np.abs(table @ row - self.after), -1.0))] = False
            yield estimate, free
        found = self._consensus(np.stack([*y, x]) if with_latents else y)
        if found is not None:
            yield found
        for share in SHARES:
            yield estimate, np.abs(estimate) <= np.quantile(np.abs(estimate), share)

    def _consensus(self, parts: Array) -> tuple[Array, Mask] | None:
        """The clipped elements, by what they have in common: |after - s parts| = m, parts [U, N].

        So many of them as there are numbers tell s [U] and m; of random few those are taken with
        which most others agree (Fischler and Bolles, *Random sample consensus*, 1981). None if
        hardly any do.
        """
        unknown, size = len(parts) + 1, float(np.sqrt(np.mean(self.after**2)))
        random = np.random.default_rng(0)
        picked = random.integers(len(self.after), size=(TRIES, unknown))
        sign = random.choice((-1.0, 1.0), size=(TRIES, unknown, 1))
        table = np.concatenate([sign, np.moveaxis(parts[:, picked], 0, -1)], axis=2)
        scale = np.sqrt(np.mean(table**2, axis=(0, 1))) + 1e-300
        system = table / scale + 1e-9 * np.eye(unknown)
        m, *s = np.linalg.solve(system, self.after[picked][..., None])[..., 0].T / scale[:, None]
        rest = self.after - np.einsum("ut,un->tn", np.asarray(s), parts)
        near = max(0.1 * EXPLAINED, 4.0 * self.rounding) * size
        agree = np.abs(np.abs(rest) - np.abs(m)[:, None]) <= near
        agree &= np.abs(m)[:, None] > 20.0 * near  # all free ones agree on a limit of 0
        best = int(np.argmax(agree.sum(axis=1)))
        return (rest[best], ~agree[best]) if agree[best].sum() >= unknown + SPARE else None

    def _settled(self, estimate: Array, free: Mask, with_latents: bool) -> tuple[Array, float]:
        """Numbers and free elements that agree with each other, and the squares that they leave."""
        branches = len(self.y)
        best, least = np.zeros(2 * branches + 3), np.inf
        for _ in range(ROUNDS):
            row, left = self._solved(free, np.sign(estimate), with_latents)
            if left >= least * (1 - 1e-9):
                break
            best, least = row, left
            if not np.isfinite(row[1 + branches]):
                break
            estimate, free = self._split(row)
        return best, least

    def _split(self, row: Array) -> tuple[Array, Mask]:
        """Estimates of the data by these numbers, and which are within the limit."""
        limit = 1 + len(self.y)
        estimate = row[0] * self.x - row[1:limit] @ self.y
        return estimate, np.abs(estimate) < row[limit]

    def _solved(self, free: Mask, sign: Array, with_latents: bool) -> tuple[Array, float]:
        """Least squares for a given set of free elements.

        Clipped ones that are too few to tell a limit are left out, and what goes through the limit
        is then not told from what does not: k and q hold both. So are too few free ones, with k and
        q 0.
        """
        branches = len(self.y)
        row, used = np.zeros(2 * branches + 3), np.ones(2 * branches + 3, np.bool_)
        some = bool(free.sum() >= branches + 1 + SPARE)
        many = bool((~free).sum() >= branches + 1 + with_latents + SPARE)
        used[: 1 + branches], used[1 + branches : -1], used[-1] = some, many, many and with_latents
        if not (some or many):
            return row, np.inf
        kept = np.full(len(free), True) if some and many else free if some else ~free
        x, y, after, free, sign = (
            self.x[kept],
            self.y[:, kept],
            self.after[kept],
            free[kept],
            sign[kept],
        )
        columns = [
            np.where(free, x, 0.0),
            *np.where(free, -y, 0.0),
            np.where(free, 0.0, sign),
            *y,
            x,
        ]
        table = np.stack([c for c, use in zip(columns, used, strict=True) if use], axis=1)
        size = np.sqrt(np.mean(table**2, axis=0))
        size[size == 0.0] = 1.0
        row[used] = np.linalg.lstsq(table / size, after, rcond=1e-10)[0] / size
        left = float(np.sum((after - table @ row[used]) ** 2))
        if not many:
            row[1 + branches] = np.inf
        elif row[1 + branches] <= 0.0:
            return row, np.inf
        return row, left
