"""A sampler that clips, told from single elements of recorded calls.

Samplers that keep their estimate of the data within bounds (DDIM as diffusers sets it up) make of
every element

    x' = clip(k x - q y, -m, m) + s y + r x

with numbers of the step alone: k x - q y is the estimate of the data, carried to the next step's
scale, s y (and r x, for predictions of the data or a velocity) the noise put back. A sketch adds
clipped and free elements up, so that nothing linear holds on it; on single elements the five
numbers are told exactly, as soon as it is known which of them were clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .clamp_step import EXPLAINED, ClampStep
from .error_diffusion import Array

BETTER = 0.1
"""Most that it may leave of what steps without a limit leave."""
HOPELESS = 100.0
"""So many times that at a single step, and the rest is not tried."""
FEWEST = 32
"""Elements below which nothing is fitted: half of them are kept apart to judge the fit."""
GUIDANCE_STEPS = 10
CHAINED = 1e-3
"""How far steps may be from putting back what the next one takes out."""
SAME_SCALE = 0.01
"""By how much guidance scales that steps tell may differ, relative to 1 or the scale."""


@dataclass(frozen=True, eq=False)
class Clamp:
    """The steps of a sampler that clips: `rows` [T, 5] of k, q, m, s, r."""

    rows: Array

    def after(self, t: int, x: Array, y: Array) -> Array:
        """The elements after step t, from the latents' and the outputs' before it."""
        k, q, m, s, r = (float(v) for v in self.rows[t])
        made = np.clip(k * x - q * y, -m, m) + s * y
        return made + r * x if r else made


def clamp_of(x: Array, y: Array, rounding: float = 0.0) -> Clamp | None:
    """The clamp behind elements of latents `x` and of the outputs that the sampler saw, `y` [T, N].

    Fitted to every second element and judged on the others: None if over the whole run more than
    `EXPLAINED` of their updates is left (beside `rounding`, the relative precision of the latents),
    or more than `BETTER` of what steps without a limit leave. What was clipped at a first step that
    clipped nearly all is not judged: no plan changes it. See `_completed` for the last step, which
    no call sees.
    """
    if x.shape[1] < FEWEST or len(x) < 3 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    seen = _rows(x[:, ::2], y[:, ::2], rounding)
    rows = None if seen is None else _completed(seen)
    if seen is None or rows is None or not np.isfinite(rows).all():
        return None
    clamp, told = Clamp(rows), 0 if seen[0, :2].any() else 1
    return clamp if _explains(clamp, x[told:, 1::2], y[told:, 1::2], rounding, told) else None


def guidance_of(x: Array, y: Array, rounding: float = 0.0) -> float | None:
    """The scale w of branch 0 in w y_0 + (1 - w) y_1, from `x` [T, N] and `y` [2, T, N].

    Told by the weights of the two outputs over the run; None if steps differ.
    """
    found: list[float] = []
    for t in np.unique(np.linspace(0, len(x) - 2, GUIDANCE_STEPS).round().astype(np.int64)):
        step = ClampStep(x[t], y[:, t], x[t + 1], rounding)
        row, left = step.fitted(None)
        of = row[4:6] if row[4:6].any() else row[1:3]
        told = abs(float(of.sum())) > 1e-3 * float(np.abs(of).max())
        if left <= EXPLAINED + step.noise and told:
            found.append(float(of[0] / of.sum()))
    if len(found) < 3:
        return None
    w = float(np.median(found))
    agree = np.abs(np.asarray(found) - w) <= SAME_SCALE * max(1.0, abs(w))
    return w if agree.mean() > 0.5 else None


def _rows(x: Array, y: Array, rounding: float) -> Array | None:
    """[T - 1, 5], from the last step back: what is clipped at one is much the same before it."""
    rows, known = np.zeros((len(x) - 1, 5)), list[Array]()
    for t in range(len(x) - 2, -1, -1):
        step = ClampStep(x[t], y[None, t], x[t + 1], rounding)
        like = _onward(*known[-1:-3:-1]) if len(known) > 1 else known[-1] if known else None
        rows[t], left = step.fitted(None if like is None else np.append(like, 1.0))
        if left > HOPELESS * EXPLAINED + 10.0 * step.noise:
            return None
        if np.isfinite(rows[t, 2]) and rows[t, :2].any():
            known.append(rows[t, :2] / rows[t, 2])
    return rows


def _explains(clamp: Clamp, x: Array, y: Array, rounding: float, start: int) -> bool:
    """Whether it leaves next to nothing from step `start` on, and far less than without a limit."""
    left = straight = 0.0
    for t in range(len(x) - 1):
        table, after = np.stack([x[t], y[t]], axis=1), x[t + 1]
        row = np.linalg.lstsq(table, after, rcond=1e-10)[0]
        straight += float(np.sum((table @ row - after) ** 2))
        left += float(np.sum((clamp.after(start + t, x[t], y[t]) - after) ** 2))
    moved = float(np.sum(np.diff(x, axis=0) ** 2))
    rounded = (2.0 * rounding) ** 2 * float(np.sum(x**2))
    return left <= EXPLAINED**2 * moved + rounded and left <= BETTER**2 * straight


def _completed(rows: Array) -> Array | None:
    """All T steps, from what is known of the T - 1 that calls saw; None if no limit is.

    Where nothing was clipped only k + r and s - q are known, where all was k and q are not. Of
    predictions of the noise both follow from the steps before: what a step puts back is what the
    next one takes out, k_t = m_t / m_{t-1} and q_t = k_t s_{t-1}, which is seen where both are
    known. For other predictions m, s and r are interpolated, and so are k / m and q / m. The last
    step, which no call sees, ends in the estimate itself, with a limit of 1: whatever the scale,
    errors relative to the sample are the same.
    """
    k, q, m, s, r = rows.T.copy()
    clipped, told = np.isfinite(m), (k != 0.0) | (q != 0.0)
    both = clipped & told
    if not both.any():
        return None
    gain, kept = s - q, k + r
    pairs = np.flatnonzero(both[1:] & both[:-1]) + 1
    off = np.abs(k[pairs] * m[pairs - 1] / m[pairs] - 1.0)
    off += np.abs(q[pairs] - k[pairs] * s[pairs - 1]) / np.abs(q[pairs])
    chained = len(pairs) > 0 and float(np.median(off)) < CHAINED and not r.any()
    index = np.arange(len(rows))
    known = index[clipped]
    for value in (m, s, r):
        value[~clipped] = np.interp(index[~clipped], known, value[clipped])
    if chained:
        for t in (*range(1, len(rows)), *range(len(rows) - 2, -1, -1)):
            before, after = t - 1, t + 1
            if clipped[t]:
                continue
            if before >= 0 and clipped[before]:
                m[t], s[t] = kept[t] * m[before], gain[t] + kept[t] * s[before]
            elif after < len(rows) and clipped[after]:
                m[t], s[t] = m[after] / kept[after], (s[after] - gain[after]) / kept[after]
            else:
                continue
            clipped[t] = True
    free = told & ~both
    k[free], q[free] = (kept - r)[free], (s - gain)[free]
    estimate = np.stack([k, q]) / m
    for t in index[~told]:
        if chained and t:
            estimate[:, t] = 1.0 / m[t - 1], s[t - 1] / m[t - 1]
        else:
            estimate[:, t] = [np.interp(t, index[told], e[told]) for e in estimate]
    if not told[0]:
        estimate[:, 0] = _onward(estimate[:, 1], estimate[:, 2])
    end = np.array([1.0, s[-1]]) / m[-1] if chained else _onward(*estimate[:, [-1, -2]].T)
    table = np.stack([*(estimate * m), m, s, r], axis=1)
    return np.concatenate([table, [[*end, 1.0, 0.0, 0.0]]])


def _onward(now: Array, before: Array) -> Array:
    """Positive numbers that go on as they did, by at most a factor of two."""
    return now * np.clip(now / np.where(before == 0.0, 1.0, before), 0.5, 2.0)
