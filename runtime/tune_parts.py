"""Plans for parts of a model against the best one for the whole of it, in closed loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..passes.outline import Outline
from ..passes.plan_format import Plan
from ..passes.plan_from_profile import problem
from ..passes.policies import Subject
from ..passes.policies.granularity import Costed
from ..passes.policies.granularity import candidates as of_parts
from ..passes.refit import merit
from .tune import Tuner

KEPT = 2
"""Plans for parts that are replayed on all generations; the others on two only."""


def best_part(tuner: Tuner, whole: Plan) -> Plan:
    """The best of `whole` and of plans for parts of the denoiser that take no more MACs.

    Block runs, single blocks, residual branches and a UNet's deep part, each at as many steps as
    its share of the MACs leaves it (`passes.policies.granularity`), replayed on two generations;
    the best two of these, and `whole`, on all. The one with the least measured error is kept, and
    `Plan.chosen` says against how many.
    """
    few = min(2, tuner.calls)
    others = [
        c
        for c in _candidates(tuner, whole)
        if c.part.region != whole.regions[0].region
        and all(executor.fits(c.plan) for executor in tuner.session.executors)
    ]
    ranked = sorted(others, key=lambda c: _merit(tuner.errors(c.plan, few)[0]))
    best, least, error = whole, _merit(tuner.errors(whole, tuner.calls)[0]), whole.expected_error
    name = "the whole denoiser"
    for costed in ranked[:KEPT]:
        errors, _ = tuner.errors(costed.plan, tuner.calls)
        if _merit(errors) < least:
            best, least, name = costed.plan, _merit(errors), costed.part.name
            error = float(np.sqrt(errors.mean()))
    said = f"{name}, against {len(others)} plans for parts of the model at equal MACs"
    how = whole.chosen if best is whole else "closed loop"
    return replace(best, expected_error=error, chosen=f"{how}; {said}")


def _candidates(tuner: Tuner, whole: Plan) -> list[Costed]:
    session, profile = tuner.session, tuner.profile
    given = problem(profile)
    on = Subject(
        signature=profile.signature,
        timesteps=profile.timesteps,
        outline=session.outline or Outline(0),
        profile=profile,
        target=given.target,
        solver=given.c,
        guidance=profile.guidance,
    )
    speedup = len(whole.timesteps) / whole.computed_steps
    return of_parts(session.executors[0].graph, on, speedup)


def _merit(errors: np.ndarray) -> float:
    usable = len(errors) and bool(np.isfinite(errors).all())
    return merit(errors) if usable else float("inf")
