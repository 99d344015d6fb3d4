"""Solver weights: how much an error at each step weighs in the final sample.

A deterministic sampler is linear in the model's outputs, `x_T = (something of x_0) + sum_t c_t y_t`
along a fixed run. c [T] comes from the grid alone (Euler), from running a scheduler on unit
outputs, or from what the model was called with (`measured_solver`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .plan_format import PlanError

Array = npt.NDArray[np.float64]


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
