"""Plans for ditcache-opt: read and checked against the graph, or made up to look at."""

from __future__ import annotations

import numpy as np

from . import policies
from .forecasters import Lagrange, Taylor
from .ir import StepGraph
from .opt_load import InputError
from .plan_format import Plan, RegionSchedule
from .portfolio import POLICIES, steps_for
from .profile import Profile
from .schedules import uniform_index
from .selectors import outline
from .signature import model_signature
from .solver_weights import from_grid

UNPROFILED: dict[str, Taylor | Lagrange] = {
    "reuse": Taylor(0),
    "taylor-1": Taylor(1),
    "taylor-2": Taylor(2),
    "lagrange-1": Lagrange(1),
    "lagrange-2": Lagrange(2),
}


def check_signature(graph: StepGraph, what: str, signature: str) -> None:
    """Raise InputError if a file (`what`: plan, profile) is for another architecture."""
    own = model_signature(graph)
    if signature != own:
        raise InputError(
            f"the {what} is for another model (its signature is {signature}, {graph.name} has "
            f"{own}); record this model and make a {what} from that"
        )


def unprofiled(
    graph: StepGraph, policy: str, speedup: float, steps: int, regions: tuple[str, ...]
) -> Plan:
    """A plan that needs no measurement: a plain forecaster on steps uniform in the index.

    For looking at what the rewriting passes do; nothing says that its quality is good. Raises
    InputError for a policy that needs a profile, PlanError for a budget out of reach.
    """
    if steps < 2:
        raise InputError(f"--steps {steps}: a plan needs at least 2")
    name, options = policies.parse(policy)
    if name in policies.ZOO:
        grid = tuple(np.linspace(1000.0, 1000.0 / steps, steps).tolist())
        on = policies.Subject(model_signature(graph), grid, outline(graph))
        return policies.make(name, options).plan(on)
    if policy not in UNPROFILED:
        if policy in POLICIES:
            raise InputError(
                f"policy {policy!r} needs measurements: add --profile FILE, or use one of "
                f"{', '.join(UNPROFILED)}"
            )
        raise InputError(f"no policy {policy!r}; there are {', '.join(policies.names())}")
    grid = np.linspace(1000.0, 1000.0 / steps, steps)
    computed = uniform_index(steps, steps_for(steps, computed_steps=None, speedup=speedup))
    forecaster = UNPROFILED[policy]
    rows = forecaster.rows(computed, grid, from_grid(grid.tolist()), np.eye(steps))
    weights = tuple(tuple(float(w) for w in row) for row in rows)
    schedules = tuple(
        RegionSchedule(r, computed, weights, forecaster.history, forecaster.name, "uniform")
        for r in regions
    )
    return Plan(
        signature=model_signature(graph),
        timesteps=tuple(grid.tolist()),
        regions=schedules,
        policy=policy,
    ).validate()


def from_profile(profile: Profile, policy: str, speedup: float) -> Plan:
    """The plan that the runtime would make from this profile; raises PlanError."""
    name, options = policies.parse(policy)
    budget = {} if name in policies.ZOO else {"speedup": speedup}
    return profile.plan(policy=name, **budget, **options)
