"""Solver weights: how much an error at each step weighs in the final sample.

A deterministic sampler is linear in the model's outputs, `x_T = (something of x_0) + sum_t c_t y_t`
along a fixed run. c [T] comes from the grid alone (Euler), from running a scheduler on unit
outputs, or from what the model was called with.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .plan_format import PlanError

Array = npt.NDArray[np.float64]

LARGEST_RESIDUAL = 0.2
"""Relative to the update: bf16 latents leave up to 0.1, a stochastic sampler's noise about 1."""


def from_grid(timesteps: Sequence[float]) -> Array:
    """Euler's weights on a flow: c_t = sigma_{t+1} - sigma_t, with the last step going to the end.

    `timesteps` strictly monotone, in [0, 1] or in [0, 1000]; returns [T] in units of sigma. A
    rising grid (0 is noise) ends at 1. A grid that itself holds its end (as leading spacing does)
    gets its last step as long as the one before.
    """
    grid = np.asarray(timesteps, dtype=np.float64)
    sigma = grid / (1000.0 if np.max(grid) > 1.0 + 1e-6 else 1.0)
    rises = len(grid) > 1 and grid[0] < grid[-1]
    c = np.diff(np.append(sigma, 1.0 if rises else 0.0))
    if c[-1] == 0.0:
        c[-1] = c[-2] if len(c) > 1 else -1.0
    return c


def impulse_response(scheduler: Any, num_steps: int) -> Array:
    """Return c [num_steps] of any deterministic scheduler, by one run without a model.

    The run starts from x = 0 in R^T, float64, with the t-th unit vector as the model's output at
    step t; what comes out is c. The scheduler is copied, never touched. If its `timesteps` already
    number `num_steps` they are kept, otherwise `set_timesteps(num_steps)` is called on the copy.

    Raises `PlanError` for a stochastic scheduler (each run would differ), for one that calls the
    model several times a step (predictor and corrector, such as Heun) and for one that is not
    linear in the model's output. Clipping and thresholding are switched off on the copy.
    """
    import torch

    name = type(scheduler).__name__
    outputs = [torch.eye(num_steps, dtype=torch.float64)[t][None] for t in range(num_steps)]
    first = _run(scheduler, outputs, seed=0)
    if not torch.equal(first, _run(scheduler, outputs, seed=1)):
        raise PlanError(
            f"{name} draws noise at each step, so forecast errors do not add up as in a plan; "
            "use a deterministic sampler (FlowMatchEuler, DDIM with eta 0, DPM++ 2M, UniPC)"
        )
    doubled = _run(scheduler, [2 * y for y in outputs], seed=0)
    if not torch.allclose(doubled, 2 * first, rtol=1e-6, atol=1e-9):
        raise PlanError(f"{name} is not linear in the model's output; plan without scheduler=")
    c = first[0].numpy().astype(np.float64)
    if not np.isfinite(c).all():
        raise PlanError(f"{name} gave weights that are not finite; plan without scheduler=")
    return c


def _run(scheduler: Any, outputs: list[Any], seed: int) -> Any:
    """Return the final state [1, T] of a copy of `scheduler` from zero, fed `outputs`."""
    import torch

    steps, copied = len(outputs), copy.deepcopy(scheduler)
    name = type(scheduler).__name__
    clips = [key for key in ("clip_sample", "thresholding") if copied.config.get(key)]
    if clips:
        # Clipping acts on the data's range, which units are not in; a run is linear inside it.
        copied.register_to_config(**dict.fromkeys(clips, False))
    if len(_grid(copied)) == steps:
        _rewind(copied)
    else:
        try:
            copied.set_timesteps(steps)
        except (TypeError, ValueError) as error:
            raise PlanError(
                f"{name}.set_timesteps({steps}) failed ({error}); pass a scheduler whose "
                "timesteps are already set, such as pipe.scheduler after one generation"
            ) from error
    grid = _grid(copied)
    times = [float(t) for t in grid]
    if len(times) != steps or any(a <= b for a, b in pairwise(times)):
        raise PlanError(
            f"{name} makes {len(times)} model calls with repeated timesteps for {steps} steps "
            "(predictor and corrector); plans serve samplers with one model call a step"
        )
    state = torch.zeros(1, steps, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for t, output in zip(grid, outputs, strict=True):
            if hasattr(copied, "scale_model_input"):
                copied.scale_model_input(state, t)  # some schedulers insist on the call
            state = copied.step(output, t, state, return_dict=False)[0]
    return state


def _grid(scheduler: Any) -> list[Any]:
    return [] if scheduler.timesteps is None else list(scheduler.timesteps)


def _rewind(scheduler: Any) -> None:
    """Forget a run without forgetting its grid (which may come from sigmas= or mu=)."""
    scheduler._step_index = None
    for name in ("lower_order_nums", "_begin_index", "last_sample", "this_order"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, 0 if name == "lower_order_nums" else None)
    if hasattr(scheduler, "model_outputs"):
        scheduler.model_outputs = [None] * len(scheduler.model_outputs)
        if hasattr(scheduler, "timestep_list"):
            scheduler.timestep_list = [None] * len(scheduler.timestep_list)


@dataclass(frozen=True)
class MeasuredSolver:
    """What recorded calls say about the sampler: x_{t+1} = carry_t x_t + sum_b gains[b, t] y_{b,t}.

    `weights` c [T]; `guidance` the scale w of branch 0 (None with one branch or when it cannot be
    told); `residual` rms of what the fit leaves over rms of the update, pooled; `carry` [T-1];
    `gains` [B, T-1].
    """

    weights: Array
    guidance: float | None
    residual: float
    carry: Array
    gains: Array


def measured(
    zx: npt.ArrayLike, zy: npt.ArrayLike, timesteps: Sequence[float] | None = None
) -> MeasuredSolver | None:
    """Learn the sampler from the latents that went in and the outputs that came out.

    `zx` [n, T, m] holds the latents (or a linear sketch of them) as the model saw them, `zy`
    [n, B, T, m] the branches' outputs through the same sketch. For each step the next latents are
    fitted by least squares over all n m numbers, and the gains are carried through the later
    steps. The last update is never seen by the model; its gain is extrapolated in proportion to
    the grid's own step (`timesteps`, else the step before).

    Returns None where the update is not of that form (residual above `LARGEST_RESIDUAL`): a
    stochastic sampler, a strongly multi-step one, or latents changed between the steps.
    """
    x, y = np.asarray(zx, dtype=np.float64), np.asarray(zy, dtype=np.float64)
    if x.ndim != 3 or y.ndim != 4 or (y.shape[0], y.shape[2], y.shape[3]) != x.shape:
        raise PlanError(
            f"measured() wants zx [n, T, m] and zy [n, B, T, m], got {x.shape} and {y.shape}"
        )
    branches, steps = y.shape[1], x.shape[1]
    if steps < 3 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    carry, gains = np.ones(steps - 1), np.zeros((branches, steps - 1))
    left = moved = 0.0
    for t in range(steps - 1):
        table = np.stack([x[:, t].ravel(), *(y[:, b, t].ravel() for b in range(branches))], axis=1)
        size = np.sqrt(np.mean(table**2, axis=0))
        size[size == 0.0] = 1.0
        found = np.linalg.lstsq(table / size, x[:, t + 1].ravel(), rcond=1e-10)[0] / size
        carry[t], gains[:, t] = found[0], found[1:]
        left += float(np.sum((x[:, t + 1].ravel() - table @ found) ** 2))
        moved += float(np.sum((x[:, t + 1] - x[:, t]) ** 2))
    residual = float(np.sqrt(left / moved)) if moved > 0.0 else np.inf
    if not residual <= LARGEST_RESIDUAL:
        return None
    total = gains.sum(axis=0)
    size = np.ones(steps) if timesteps is None else from_grid(timesteps)
    last = total[-1] * size[-1] / size[-2]
    onward = np.append(np.cumprod(carry[:0:-1])[::-1], 1.0) if steps > 2 else np.ones(1)
    # The unseen last step is taken to carry the latents unchanged, as a flow does.
    weights = np.append(total * onward, last)
    return MeasuredSolver(weights, _guidance(gains), residual, carry, gains)


def _guidance(gains: Array) -> float | None:
    """Median over steps of g_0 / (g_0 + g_1); None if the steps do not agree."""
    if len(gains) != 2:
        return None
    total = gains.sum(axis=0)
    usable = np.abs(total) > 1e-3 * np.max(np.abs(gains), initial=1e-30)
    if usable.sum() < 2:
        return None
    ratio = gains[0, usable] / total[usable]
    middle = float(np.median(ratio))
    spread = float(np.median(np.abs(ratio - middle)))
    return middle if spread <= 0.1 * max(1.0, abs(middle)) else None
