"""Plans for ditcache-opt: read and checked against the graph, or made up to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import policies
from .budget import steps_for
from .ir import StepGraph
from .opt_load import InputError
from .plan_format import Plan, RegionSchedule
from .portfolio import PLAIN, POLICIES
from .profile import Profile
from .schedules import uniform_index
from .selectors import outline
from .signature import model_signature
from .solver_weights import from_grid

SPEEDUP, STEPS, REGION = 2.0, 50, "denoiser"


@dataclass(frozen=True)
class Wanted:
    """Which plan to insert: that of a file, or one that a policy makes; checked by `wanted`."""

    stored: Plan | None = None
    profile: Profile | None = None
    policy: str = ""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    speedup: float = SPEEDUP
    steps: int = STEPS
    regions: tuple[str, ...] = (REGION,)

    def bind(self, graph: StepGraph) -> Plan | None:
        """The plan for an analysed graph, None if none is wanted.

        Raises InputError for files of another model, PlanError for what the graph does not have.
        """
        if self.profile is not None:
            _check_signature(graph, "profile", self.profile.signature)
        if self.stored is not None:
            _check_signature(graph, "plan", self.stored.signature)
            return self.stored
        if not self.policy:
            return None
        if self.profile is not None:  # what the runtime would make of it
            budget = {} if self.policy in policies.ZOO else {"speedup": self.speedup}
            return self.profile.plan(policy=self.policy, **budget, **self.options)
        return self._made_up(graph)

    def _made_up(self, graph: StepGraph) -> Plan:
        """A plan that needs no measurement: for looking at, nothing says that it is good."""
        grid = np.linspace(1000.0, 1000.0 / self.steps, self.steps)
        times = tuple(grid.tolist())
        if self.policy in policies.ZOO:
            on = policies.Subject(model_signature(graph), times, outline(graph))
            return policies.make(self.policy, self.options).plan(on)
        budget = steps_for(self.steps, computed_steps=None, speedup=self.speedup)
        computed = uniform_index(self.steps, budget)
        forecaster = PLAIN[self.policy]
        rows = forecaster.rows(computed, grid, from_grid(times), np.eye(self.steps))
        weights = tuple(tuple(float(w) for w in row) for row in rows)
        schedules = tuple(
            RegionSchedule(r, computed, weights, forecaster.history, forecaster.name, "uniform")
            for r in self.regions
        )
        return Plan(model_signature(graph), times, schedules, self.policy).validate()


def wanted(
    plan: Path | None,
    profile: Path | None,
    policy: str,
    *,
    speedup: float | None,
    steps: int | None,
    region: str | None,
) -> Wanted:
    """What the options ask for, found wrong before a model is traced.

    Raises InputError for options that do not go together, PlanError and ProfileError for files
    and budgets.
    """
    if plan is not None and policy:
        raise InputError("--plan and --policy both give a plan; use one of them")
    stored = Plan.load(plan) if plan is not None else None
    measured = Profile.load(profile) if profile is not None else None
    given = {"--speedup": speedup, "--steps": steps, "--region": region}
    said = [name for name, value in given.items() if value is not None]
    if not policy:
        if said:
            raise InputError(f"{said[0]} says how --policy makes a plan; give one, or leave it out")
        return Wanted(stored, measured)
    name, options = policies.parse(policy)
    of_zoo = name in policies.ZOO
    _check_policy(name, options, has_profile=measured is not None)
    unused = {"--speedup", "--region"} if of_zoo else set[str]()
    unused |= {"--steps", "--region"} if measured is not None else set[str]()
    if wrong := [option for option in said if option in unused]:
        why = "which says so itself" if of_zoo else "whose profile says so"
        raise InputError(f"{wrong[0]} does not apply to policy {name!r}, {why}; leave it out")
    grid = STEPS if steps is None else steps
    if grid < 2:
        raise InputError(f"--steps {grid}: a plan needs at least 2")
    budget = SPEEDUP if speedup is None else speedup
    if not of_zoo and measured is None:
        steps_for(grid, computed_steps=None, speedup=budget)
    regions = tuple((region or REGION).split(","))
    return Wanted(None, measured, name, options, budget, grid, regions)


def _check_policy(name: str, options: dict[str, Any], *, has_profile: bool) -> None:
    if name in policies.ZOO:
        policies.make(name, options)
    elif name not in POLICIES:
        raise InputError(f"no policy {name!r}; there are {', '.join(policies.names())}")
    elif options:
        raise InputError(f"policy {name!r} has no option {next(iter(options))!r}, only --speedup")
    elif name not in PLAIN and not has_profile:
        raise InputError(
            f"policy {name!r} needs measurements: add --profile FILE, or use one of "
            f"{', '.join(PLAIN)}"
        )


def _check_signature(graph: StepGraph, what: str, signature: str) -> None:
    """Raise InputError if a file (`what`: plan, profile) is for another architecture."""
    own = model_signature(graph)
    if signature != own:
        raise InputError(
            f"the {what} is for another model (its signature is {signature}, {graph.name} has "
            f"{own}); record this model and make a {what} from that"
        )
