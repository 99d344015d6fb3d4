"""From a profile to a plan: the best one within a budget, with what it was solved from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from .budget import FEWEST, check_budget, steps_for
from .checks import checks_for, low_rank
from .error_diffusion import Array
from .frontier import Frontier, frontier_of
from .guidance import conditional, solved_scale
from .plan_format import Plan, PlanError, RegionSchedule
from .plan_parts import DENOISER
from .portfolio import POLICIES, guided_gram, solve
from .target_grid import CLAMPED, Target, onto, solver_weights

if TYPE_CHECKING:
    from .profile import Profile

NOT_ADDED_UP = (
    "the sampler does not add the outputs up as a deterministic one does (it draws noise, it clips "
    "its estimate of the data, or the latents change between its steps)"
)
MEASURE = "give speedup= or computed_steps=, or let ditcache.tune measure plans"


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
        schedules.append(target.widened(schedule))
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
