"""From a profile to a plan: the grid, the solver's weights and the guidance that the plan is for.

A profile serves other grids than its own: the outputs are smooth in time, so their Gram matrix is
carried over by interpolation, G' = M G M' with M the cubic spline's cardinal matrix. Steps outside
the calibrated range always compute, as extrapolating there costs far more than it saves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from scipy.interpolate import CubicSpline

from .budget import FEWEST, check_budget, steps_for
from .checks import checks_for, low_rank
from .error_diffusion import Array
from .frontier import Frontier, frontier_of
from .guidance import conditional, solved_scale
from .plan_format import Plan, PlanError, RegionSchedule, is_monotone
from .plan_parts import DENOISER
from .portfolio import POLICIES, guided_gram, solve
from .solver_weights import from_grid, impulse_response

if TYPE_CHECKING:
    from .profile import Profile

GRID_TOLERANCE = 1e-6
"""Relative to the range of the grid: timesteps closer than this are the same."""
CLAMPED = "clamped"
"""Where weights come from that were told from elements of a sampler that clips."""
NOT_ADDED_UP = (
    "the sampler does not add the outputs up as a deterministic one does (it draws noise, it clips "
    "its estimate of the data, or the latents change between its steps)"
)
MEASURE = "give speedup= or computed_steps=, or let ditcache.tune measure plans"
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


@dataclass(frozen=True)
class Problem:
    """What is solved for one region: its Gram matrix, the time x and the solver's weights c."""

    target: Target
    gram: Array
    x: Array
    c: Array
    solver: str


def problem(profile: Profile) -> Problem:
    """The denoiser (or the first region) of a profile, on its own grid."""
    target = onto(profile, None)
    c, solver = solver_weights(profile, target, None)
    region = profile.region(DENOISER) or profile.regions[0]
    gram = guided_gram(region.gram, profile.guidance, conditional(profile.branches))
    return Problem(target, gram, target.timesteps, c, solver)


def make_plan(
    profile: Profile,
    *,
    speedup: float | None,
    computed_steps: int | None,
    max_error: float | None,
    policy: str,
    timesteps: Sequence[float] | None,
    scheduler: Any,
    guidance: float | None,
    options: Mapping[str, Any],
) -> Plan:
    """See `Profile.plan`."""
    if policy not in POLICIES:
        return _of_zoo(
            profile,
            policy,
            options,
            {"speedup": speedup, "computed_steps": computed_steps, "max_error": max_error},
            {"timesteps": timesteps, "scheduler": scheduler, "guidance": guidance},
        )
    if options:
        raise PlanError(f"policy {policy!r} has no option {next(iter(options))!r}, only a budget")
    check_budget(computed_steps=computed_steps, speedup=speedup, max_error=max_error)
    target = onto(profile, timesteps)
    c, solver = solver_weights(profile, target, scheduler)
    scale = profile.guidance if guidance is None else guidance
    # Elements went through the recorded sampler, at the recorded guidance.
    clipped = profile.clipped if solver == CLAMPED and scale == profile.guidance else None
    tells = profile.adds_up or clipped is not None
    if max_error is not None and not tells:
        raise PlanError(f"max_error= cannot be kept: {NOT_ADDED_UP}; {MEASURE}")
    if max_error is None:
        n = steps_for(len(target.timesteps), computed_steps=computed_steps, speedup=speedup)
        computed_steps, speedup = _covered(profile, target, n), None
    solved = solved_scale(profile.guidance, scale)
    chosen = [region for region in profile.regions if region.region == DENOISER]
    schedules: list[RegionSchedule] = []
    errors: list[float] = []
    for region in chosen or profile.regions:
        schedule, error = solve(
            target.gram(guided_gram(region.gram, solved, conditional(profile.branches))),
            target.timesteps[target.covered].tolist(),
            c[target.covered],
            computed_steps=computed_steps,
            speedup=speedup,
            max_error=max_error,
            policy=policy,
            region=region.region,
            power=profile.power if region.region == DENOISER else None,
            fits=not profile.draws_noise,
            clipped=clipped if region.region == DENOISER else None,
        )
        schedules.append(_widen(schedule, target))
        errors.append(error)
    evidence = evidence_of(profile, target, c, solved, schedules)
    return Plan(
        signature=profile.signature,
        timesteps=tuple(target.timesteps.tolist()),
        regions=tuple(schedules),
        policy=policy,
        expected_error=max(errors) if tells else None,
        solver=solver,
        guidance=scale,
        shape=chosen[0].shape if chosen else None,
        dtype=chosen[0].dtype if chosen else None,
        **evidence,
    ).validate()


def _covered(profile: Profile, target: Target, n: int) -> int:
    """How many of n computed steps lie in the calibrated range; PlanError if too few do."""
    steps, outside = len(target.timesteps), target.before + target.after
    left = n - outside  # what lies outside always computes
    if left < min(FEWEST, steps - outside):
        raise PlanError(
            f"{outside} of the {steps} steps lie outside the calibrated range "
            f"[{profile.timesteps[-1]:g}, {profile.timesteps[0]:g}] and have to compute, which "
            f"leaves {left} for the others; allow {outside + FEWEST} or more computed steps, or "
            "calibrate on this grid"
        )
    return left


def _of_zoo(
    profile: Profile,
    policy: str,
    options: Mapping[str, Any],
    budgets: Mapping[str, float | None],
    grid: Mapping[str, Any],
) -> Plan:
    """The plan of a published policy, which has options in place of a budget."""
    from . import policies  # they plan from profiles, too

    made = policies.make(policy, options)
    given = [name for name, value in budgets.items() if value is not None]
    if given:
        raise PlanError(f"policy {policy!r} has options of its own in place of {given[0]}")
    return made.plan(policies.subject(profile, **grid))


class Evidence(TypedDict, total=False):
    """The fields of a plan that say what it was solved from."""

    sampler: tuple[float, ...]
    basis: tuple[tuple[float, ...], ...]
    checks: tuple[tuple[float, ...], ...]
    power: float | None


def evidence_of(
    profile: Profile,
    target: Target,
    c: Array,
    guidance: float | None,
    schedules: Sequence[RegionSchedule],
) -> Evidence:
    """What travels with a plan; nothing where steps lie outside the profile or regions are many."""
    region = profile.region(schedules[0].region)
    if target.before + target.after or len(schedules) != 1 or region is None:
        return {}
    alone = target.gram(np.einsum("bbst->st", region.gram) / len(profile.branches))
    checks = checks_for((alone + alone.T) / 2, schedules[0].computed, schedules[0].history)
    if not profile.adds_up:
        return {"checks": checks}
    guided = target.gram(guided_gram(region.gram, guidance, conditional(profile.branches)))
    return {
        "sampler": tuple(float(f"{v:.9g}") for v in c),
        "basis": low_rank(guided),
        "checks": checks,
        "power": profile.power,
    }


def make_frontier(profile: Profile, policy: str) -> Frontier:
    """See `Profile.frontier`."""
    if not profile.tells_errors:
        raise PlanError(f"no error can be predicted: {NOT_ADDED_UP}; {MEASURE}")
    given, times = problem(profile), profile.timesteps
    clipped = profile.clipped
    return frontier_of(given.gram, times, given.c, policy, profile.power, clipped=clipped)


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


def _widen(schedule: RegionSchedule, target: Target) -> RegionSchedule:
    """Add the uncovered steps at both ends as computed ones."""
    if not target.before + target.after:
        return schedule
    steps, zero = len(target.timesteps), (0.0,) * schedule.history
    inside = tuple(target.before + step for step in schedule.computed)
    return RegionSchedule(
        region=schedule.region,
        computed=(*range(target.before), *inside, *range(steps - target.after, steps)),
        weights=(*(zero,) * target.before, *schedule.weights, *(zero,) * target.after),
        history=schedule.history,
        forecaster=schedule.forecaster,
        schedule=schedule.schedule,
    )
