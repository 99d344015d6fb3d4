"""The guidance scale from recorded latents and outputs, where the plain fit does not tell it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..passes.solver_weights import MeasuredSolver

Array = npt.NDArray[np.float64]

HALVES = 2
MEMORY = 3  # outputs that a step may use: UniPC and DPM++ of order 2 or 3
LARGEST_RESIDUAL = 0.02  # of the step's update, of what the fit with memory may leave
SMALLEST_DIFFERENCE = 1e-4  # of the outputs, between branches that tell something


def with_scale(found: MeasuredSolver | None, x: Array, y: Array) -> MeasuredSolver | None:
    """The same weights with the guidance scale of two branches, if the recordings tell it.

    `x` f64 [n, T, m] are sketches of the latents, `y` f64 [n, B, T, m] of the branches' outputs.
    Of a sampler with memory (DPM++ 2M, UniPC) the scale shows once the outputs before are taken
    into account. Branches that hardly differ, as of an untrained model, tell nothing.
    """
    if found is None or y.shape[1] != HALVES:
        return found
    if not np.linalg.norm(y[:, 0] - y[:, 1]) > SMALLEST_DIFFERENCE * np.linalg.norm(y):
        return replace(found, guidance=None)
    if found.guidance is not None:
        return found
    return replace(found, guidance=_scale_with_memory(x, y))


def _scale_with_memory(x: Array, y: Array) -> float | None:
    """The first branch's share of what each step adds, as the median over the steps.

    Fits x_{t+1} = a x_t + sum over k < MEMORY and both branches b of g_{k,b} y_{b,t-k} at each t;
    the share is g_{0,0} / (g_{0,0} + g_{0,1}). None if the steps do not agree.
    """
    shares: list[float] = []
    for t in range(MEMORY - 1, x.shape[1] - 1):
        columns = [x[:, t].ravel()]
        columns += [y[:, b, t - k].ravel() for k in range(MEMORY) for b in range(HALVES)]
        table = np.stack(columns, axis=1)
        size = np.sqrt(np.mean(table**2, axis=0))
        size[size == 0.0] = 1.0
        found = np.linalg.lstsq(table / size, x[:, t + 1].ravel(), rcond=None)[0] / size
        left = x[:, t + 1].ravel() - table @ found
        moved = x[:, t + 1] - x[:, t]
        if np.linalg.norm(left) <= LARGEST_RESIDUAL * np.linalg.norm(moved) and found[1] + found[2]:
            shares.append(float(found[1] / (found[1] + found[2])))
    if len(shares) < 2:
        return None
    middle = float(np.median(shares))
    spread = float(np.median(np.abs(np.asarray(shares) - middle)))
    return middle if spread <= 0.1 * max(1.0, abs(middle)) else None
