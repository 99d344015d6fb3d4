"""The grid that a plan is for: a profile carried over to it, with the sampler's weights.

A profile serves other grids than its own: the outputs are smooth in time, so their Gram matrix is
carried over by interpolation, G' = M G M' with M the cubic spline's cardinal matrix. Steps outside
the calibrated range always compute, as extrapolating there costs far more than it saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.interpolate import CubicSpline

from .error_diffusion import Array
from .plan_format import PlanError, RegionSchedule, is_monotone
from .solver_weights import from_grid, impulse_response

if TYPE_CHECKING:
    from .profile import Profile

GRID_TOLERANCE = 1e-6
"""Relative to the range of the grid: timesteps closer than this are the same."""
CLAMPED = "clamped"
"""Where weights come from that were told from elements of a sampler that clips."""
ENDS = 6
"""Steps at either end of a run in which a sampler with memory weighs outputs unevenly."""


@dataclass(frozen=True)
class Target:
    """A grid to plan for: its steps inside the calibrated range, and how many lie outside.

    `timesteps` [T] is the whole grid; `before` and `after` steps at its ends are not covered by the
    profile. `carry` is M [T', T0] for the T' covered steps, None if the grid is the profile's own.
    """

    timesteps: Array
    before: int
    after: int
    carry: Array | None

    def gram(self, own: Array) -> Array:
        """Return the Gram matrix [T', T'] on the covered steps, from the profile's [T0, T0]."""
        return own if self.carry is None else self.carry @ own @ self.carry.T

    @property
    def covered(self) -> slice:
        """The covered steps."""
        return slice(self.before, len(self.timesteps) - self.after)

    def widened(self, schedule: RegionSchedule) -> RegionSchedule:
        """A schedule of the covered steps as one of the whole grid: all others compute."""
        if not self.before + self.after:
            return schedule
        steps, zero = len(self.timesteps), (0.0,) * schedule.history
        inside = tuple(self.before + step for step in schedule.computed)
        return RegionSchedule(
            region=schedule.region,
            computed=(*range(self.before), *inside, *range(steps - self.after, steps)),
            weights=(*(zero,) * self.before, *schedule.weights, *(zero,) * self.after),
            history=schedule.history,
            forecaster=schedule.forecaster,
            schedule=schedule.schedule,
        )


def onto(profile: Profile, timesteps: Sequence[float] | None) -> Target:
    """Return the grid to plan for; `PlanError` if unsound or hardly overlapping the profile."""
    own = np.asarray(profile.timesteps, dtype=np.float64)
    if timesteps is None:
        return Target(own, 0, 0, None)
    try:
        grid = np.asarray(timesteps, dtype=np.float64)
    except (TypeError, ValueError):
        grid = np.empty(0)
    if grid.ndim != 1 or len(grid) < 3 or not is_monotone(grid):
        raise PlanError(
            f"timesteps= must be at least 3 finite numbers, strictly monotone, got {timesteps!r}"
        )
    sign = np.sign(own[-1] - own[0])
    if np.sign(grid[-1] - grid[0]) != sign:
        raise PlanError("timesteps= runs against the profile's grid; reverse it")
    slack = GRID_TOLERANCE * abs(own[0] - own[-1])
    if len(grid) == len(own) and np.allclose(grid, own, rtol=0.0, atol=slack):
        return Target(grid, 0, 0, None)
    before = int(np.sum(sign * (grid - own[0]) < -slack))
    after = int(np.sum(sign * (grid - own[-1]) > slack))
    inside = grid[before : len(grid) - after]
    if len(inside) < 3:
        raise PlanError(
            f"the grid [{grid[-1]:g}, {grid[0]:g}] hardly overlaps the calibrated range "
            f"[{own[-1]:g}, {own[0]:g}]; are both in the same units? Calibrate on this grid"
        )
    rising = np.argsort(own)
    spline = CubicSpline(own[rising], np.eye(len(own))[rising], axis=0)
    carry = np.asarray(spline(np.clip(inside, own.min(), own.max())), dtype=np.float64)
    return Target(grid, before, after, carry)


def solver_weights(profile: Profile, target: Target, scheduler: Any) -> tuple[Array, str]:
    """Return c [T] for the target grid and where it came from.

    A scheduler's impulse response, else what was measured (on another grid: its ratio to Euler's
    weights, interpolated) or, on their own grid, told from elements of a sampler that clips, else
    Euler's weights.
    """
    grid = from_grid(target.timesteps.tolist())
    if scheduler is not None:
        name = f"impulse:{type(scheduler).__name__}"
        return impulse_response(scheduler, len(grid)), name
    if profile.clipped is not None and target.carry is None:
        return profile.clipped.weights(), CLAMPED
    if profile.solver is None:
        return grid, "grid"
    if target.carry is None:
        return profile.solver, "measured"
    return grid * _ratio(profile, target), "measured"


def _ratio(profile: Profile, target: Target) -> Array:
    """The sampler's weights over Euler's on another grid.

    Samplers with memory begin and end in their own way, whatever the number of steps: `ENDS` steps
    at either end are taken by their place in the run, what lies between by its time.
    """
    assert profile.solver is not None
    own, grid = np.asarray(profile.timesteps, dtype=np.float64), target.timesteps
    ratio = profile.solver / from_grid(profile.timesteps)
    inner = slice(ENDS, len(own) - ENDS) if len(own) > 3 * ENDS else slice(None)
    rising = np.argsort(own[inner])
    found = np.interp(grid, own[inner][rising], ratio[inner][rising])
    if len(own) > 3 * ENDS and len(grid) > 3 * ENDS:
        found[:ENDS], found[-ENDS:] = ratio[:ENDS], ratio[-ENDS:]
    return found
