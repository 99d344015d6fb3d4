"""The sampler as its calls show it: what each step makes of the latents and outputs so far.

A step of a deterministic sampler is linear. One with memory (UniPC, DPM++) also uses what went in
and came out before, and can be written over those alone: the state that a corrector keeps to itself
is a combination of them. So recorded calls tell the whole sampler, and with it c, to the precision
of the recording, without the scheduler object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .error_diffusion import Array
from .plan_format import PlanError
from .solver_weights import from_grid

LARGEST_RESIDUAL = 0.2
"""Relative to the update: bf16 latents leave up to 0.1, a stochastic sampler's noise about 1."""
DRAWN = 0.8
"""Residual above which most of a step is drawn: four samplers that draw noise leave 0.90 to 0.95,
DDIM that clips and inpainting, which puts half of the latents back, 0.25 to 0.54."""
MEMORY = 3
"""Calls that a step may look back on: enough for correctors and predictors of order 3."""
EXACT = 1e-3
"""Residual of a fit that says all: single precision throughout."""
WORTH, AGREEMENT = 0.7, 0.15
"""Rounded latents leave more. A fit with memory is then believed if it leaves at most that share of
what the plain one leaves, and their weights in the middle of the run differ by at most that much;
else something else was at work (such as guidance by frame), which it only imitates."""
SAME = 1e-2
"""How near to 0 and 1 the weights of a step are that gives the output on as the next latents."""
CARRIED = 2.0
"""An error in the first latents that the sampler carries to the end within this factor stays."""
DATA_LIKE = 0.75
"""On a small preconditioned UNet 0.5 to 1 are within 2.6 dB at 2x and 3.4 dB at 5x; at 5x 0 is 6
below, and 13 in the tail."""
NEARLY = 0.1
"""Squared distance of the last output to the last latents, over theirs, below which it predicts the
data: no noise is left there, so a sampler that ends free of noise ends in that output."""
TAIL = 5
"""Steps from whose gains the last one is extrapolated."""
SMALLEST_DIFFERENCE = 1e-4
"""Of the outputs, between branches that tell a guidance scale; an untrained model's may not."""


@dataclass(frozen=True)
class Update:
    """Sampler steps: x_{t+1} = sum_k carry[t, k] x_{t-k} + sum_{b, k} gains[b, t, k] y_{b, t-k}.

    `carry` [S, M], `gains` [B, S, M]; entries that reach before step 0 are zero. `answer` [S] is
    how far the outputs follow the sample, where that has to be reckoned with (`_answered`).
    """

    carry: Array
    gains: Array
    answer: Array | None = None

    def after(self, t: int, x: Sequence[Array], y: Sequence[Array]) -> Array:
        """The latents after step t, from `x` [n, m] and `y` [n, B, m] of the steps up to t."""
        made = np.zeros_like(x[t])
        for k in range(min(self.carry.shape[1], t + 1)):
            if self.carry[t, k] or self.gains[:, t, k].any():
                made += self.carry[t, k] * x[t - k]
                made += np.einsum("b,nbm->nm", self.gains[:, t, k], y[t - k])
        return made

    @property
    def replaces(self) -> bool:
        """Whether every step makes the latents of the newest output alone.

        What was compiled then takes the sampler's step itself: its outputs are the next latents.
        """
        carry, total = self.carry[:-1], self.gains.sum(axis=0)[:-1]  # the last one is inferred
        newest = np.abs(total[:, 0] - 1.0).max(initial=0.0)
        older = max(np.abs(carry).max(initial=0.0), np.abs(total[:, 1:]).max(initial=0.0))
        return len(carry) > 0 and max(newest, older) < SAME

    @property
    def shares(self) -> Array:
        """What the sampler sees of each branch's output, [B, S]: guidance, summing to 1."""
        newest = self.gains[:, :, 0]
        return newest / newest.sum(axis=0)

    def response(self) -> tuple[Array, Array]:
        """What is left at the end of a unit error in y_t, [S], and of one in all x up to t, [S].

        Outputs of later steps answer to either by `answer`, y_t itself does not.
        """
        steps, memory = self.carry.shape
        total = self.gains.sum(axis=0)
        # One column for each of the 2 S errors, one row for the latents and outputs of each step.
        left, out = np.zeros((steps + 1, 2 * steps)), np.zeros((steps, 2 * steps))
        for t in range(steps):
            lags = range(min(memory, t + 1))
            if self.answer is not None:
                out[t] = self.answer[t] * left[t]
            out[t, t] += 1.0
            for k in lags:
                left[t - k, steps + t] = 1.0
            for k in lags:
                left[t + 1] += self.carry[t, k] * left[t - k] + total[t, k] * out[t - k]
        return left[-1, :steps], left[-1, steps:]


@dataclass(frozen=True)
class MeasuredSolver:
    """What recorded calls say about the sampler.

    `weights` c [T]; `guidance` the scale w of branch 0 (None with one branch or when it cannot be
    told); `residual` rms of what the fit leaves over rms of the update, pooled; `update` all T
    steps, the last of which is inferred.
    """

    weights: Array
    guidance: float | None
    residual: float
    update: Update


def measured(
    zx: npt.ArrayLike, zy: npt.ArrayLike, timesteps: Sequence[float] | None = None
) -> MeasuredSolver | None:
    """Learn the sampler from the latents that went in and the outputs that came out.

    `zx` [n, T, m] holds the latents (or a linear sketch of them) as the model saw them, `zy`
    [n, B, T, m] the branches' outputs through the same sketch. For each step the next latents are
    fitted by least squares over all n m numbers: to the step's own latents and outputs, and, where
    that leaves much more, to those of the two steps before as well. An error's way through all
    later steps gives c. The last update is never seen by the model; it is taken to carry the
    latents unchanged, as a flow does; its gain is extrapolated (`_last`).

    Returns None where the update is not of that form (residual above `LARGEST_RESIDUAL`): a
    stochastic sampler, or latents changed between the steps.
    """
    x, y = np.asarray(zx, dtype=np.float64), np.asarray(zy, dtype=np.float64)
    if x.ndim != 3 or y.ndim != 4 or (y.shape[0], y.shape[2], y.shape[3]) != x.shape:
        raise PlanError(
            f"measured() wants zx [n, T, m] and zy [n, B, T, m], got {x.shape} and {y.shape}"
        )
    steps = x.shape[1]
    if steps < 3 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    size = np.ones(steps) if timesteps is None else from_grid(timesteps)
    seen, residual = _fit(x, y, 1)
    if not np.isfinite(residual):
        return None  # the latents never moved
    whole = _completed(seen, size, steady=False)
    if not residual <= EXACT:
        deep, left = _fit(x, y, MEMORY)
        memory = _completed(deep, size, steady=True, plain=seen)
        if left <= EXACT or (left <= WORTH * residual and _agree(memory, whole)):
            seen, residual, whole = deep, left, memory
    if not residual <= LARGEST_RESIDUAL:
        return None
    whole = _answered(whole, x, y)
    return MeasuredSolver(whole.response()[0], _guidance(y, seen.gains[:, :, 0]), residual, whole)


def draws_noise(zx: npt.ArrayLike, zy: npt.ArrayLike) -> bool:
    """Whether most of what a step does to the latents is in neither latents nor outputs.

    Shapes as for `measured`. True of stochastic samplers; one that clips its estimate of the data,
    or puts known parts of a picture back, leaves less.
    """
    x, y = np.asarray(zx, dtype=np.float64), np.asarray(zy, dtype=np.float64)
    left = _fit(x, y, 1)[1]
    return bool(np.isfinite(left)) and left > DRAWN


def _answered(update: Update, x: Array, y: Array) -> Update:
    """The update with the model's answer, where an error in the sample does not stay what it is.

    In terms of a velocity the sampler carries the sample on unchanged, and what the model answers
    to an error is small beside it. A prediction of the data or the noise leaves that out: the
    sampler shrinks the sample by sigma' / sigma, or makes it grow by alpha' / alpha, and the output
    brings back what is missing, as it follows the sample. How far is the regression of the outputs
    on the latents, rho_t = <x_t, y_t> / <x_t, x_t>: the exact answer for Gaussian data to an error
    that is spread like the latents. One that is spread like the data, as errors of a prediction of
    the data are, is answered by <y_t, y_t> / <x_t, y_t>; that counts for `DATA_LIKE` of it, as far
    as no error grows by it.
    """
    kept = update.response()[1][0]
    if 1 / CARRIED <= kept <= CARRIED:
        return update
    guided, tiny = np.einsum("bt,nbtm->ntm", update.shares, y), np.finfo(np.float64).tiny
    if np.sum((guided[:, -1] - x[:, -1]) ** 2) < NEARLY * np.sum(x[:, -1] ** 2):
        update = _ending_in_the_output(update)
    xx, xy, yy = (np.einsum("ntm,ntm->t", a, b) for a, b in ((x, x), (x, guided), (guided, guided)))
    answer = xy / np.maximum(xx, tiny)
    if kept < 1.0:
        carry, gain = update.carry.sum(axis=1), update.gains.sum(axis=(0, 2))
        told = (xy > 1e-9 * np.sqrt(xx * yy)) & (gain > 0.0)
        other = np.minimum(yy / np.where(told, xy, 1.0), (1.0 - carry) / np.where(told, gain, 1.0))
        answer += DATA_LIKE * np.where(told, np.maximum(other - answer, 0.0), 0.0)
    return replace(update, answer=answer) if np.isfinite(answer).all() else update


def _ending_in_the_output(update: Update) -> Update:
    carry, gains = update.carry.copy(), update.gains.copy()
    carry[-1], gains[:, -1] = 0.0, 0.0
    gains[:, -1, 0] = update.shares[:, -1]
    return replace(update, carry=carry, gains=gains)


def _fit(x: Array, y: Array, memory: int) -> tuple[Update, float]:
    """The T - 1 updates that the model saw, and the rms of what is left over rms of the updates."""
    branches, steps = y.shape[1], x.shape[1]
    found = Update(np.zeros((steps - 1, memory)), np.zeros((branches, steps - 1, memory)))
    left = moved = 0.0
    for t in range(steps - 1):
        lags = min(memory, t + 1)
        columns = [x[:, t - k].ravel() for k in range(lags)]
        columns += [y[:, b, t - k].ravel() for b in range(branches) for k in range(lags)]
        table = np.stack(columns, axis=1)
        size = np.sqrt(np.mean(table**2, axis=0))
        size[size == 0.0] = 1.0
        row = np.linalg.lstsq(table / size, x[:, t + 1].ravel(), rcond=1e-10)[0] / size
        found.carry[t, :lags] = row[:lags]
        found.gains[:, t, :lags] = row[lags:].reshape(branches, lags)
        left += float(np.sum((x[:, t + 1].ravel() - table @ row) ** 2))
        moved += float(np.sum((x[:, t + 1] - x[:, t]) ** 2))
    return found, float(np.sqrt(left / moved)) if moved > 0.0 else np.inf


def _completed(seen: Update, size: Array, *, steady: bool, plain: Update | None = None) -> Update:
    """The updates that the model saw, and the last one, which it did not."""
    update = Update(
        np.pad(seen.carry, ((0, 1), (0, 0))), np.pad(seen.gains, ((0, 0), (0, 1), (0, 0)))
    )
    gains = (plain or seen).gains[:, :, 0]
    update.carry[-1, 0], update.gains[:, -1, 0] = 1.0, _last(gains, size, steady)
    return update


def _last(gains: Array, size: Array, steady: bool) -> Array:
    """Each branch's gain [B] of the last step, from those before, [B, T - 1].

    `size` [T] are the grid's own steps. Where gains follow those (a flow) so does the last one,
    else it goes on as the two before it. A sampler with memory (`steady`) ends in a way of its own:
    what counts is its pace over the whole run.
    """
    rate = gains.sum(axis=0) / size[:-1]
    share = np.median(gains[:, -TAIL:] / gains[:, -TAIL:].sum(axis=0), axis=1)
    if steady:
        pace = float(np.median(rate))
        return share * size[-1] * (1.0 if abs(pace - 1.0) < 0.1 else pace)
    tail, total = rate[-TAIL:], gains.sum(axis=0)
    if np.ptp(tail) <= 0.2 * abs(float(np.mean(tail))):
        return gains[:, -1] * size[-1] / size[-2]
    growth = total[-1] / total[-2] if total[-2] else 1.0
    return gains[:, -1] * float(np.clip(growth, 0.25, 1.5))


def _agree(first: Update, second: Update) -> bool:
    a, b = first.response()[0], second.response()[0]
    middle = slice(len(a) // 5, -(len(a) // 5))
    return float(np.abs(a - b)[middle].mean()) <= AGREEMENT * float(np.abs(b)[middle].mean())


def _guidance(y: Array, gains: Array) -> float | None:
    """Median over steps of g_0 / (g_0 + g_1); None if the steps do not agree."""
    if len(gains) != 2:
        return None
    if not np.linalg.norm(y[:, 0] - y[:, 1]) > SMALLEST_DIFFERENCE * np.linalg.norm(y):
        return None
    total = gains.sum(axis=0)
    usable = np.abs(total) > 1e-3 * np.max(np.abs(gains), initial=1e-30)
    if usable.sum() < 2:
        return None
    ratio = gains[0, usable] / total[usable]
    middle = float(np.median(ratio))
    spread = float(np.median(np.abs(ratio - middle)))
    return middle if spread <= 0.1 * max(1.0, abs(middle)) else None
