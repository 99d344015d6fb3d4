"""Densify: compute more of what is left of a generation, knowing what went wrong so far."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from .checks import from_low_rank
from .error_diffusion import diffuse, expected_error
from .forecasters import EDF
from .plan_format import Plan

BETAS = (0.15, 0.3, 0.45, 0.6, 0.8, 1.0)


def densify(plan: Plan, after: int) -> Plan | None:
    """The plan with a computed step in the middle of every gap that begins at or after `after`.

    Up to that step nothing changes. The rows that follow are solved anew by error diffusion on the
    Gram matrix that the plan carries, starting from the error that the plan's own rows have
    accumulated. None if the plan carries no such matrix, is for several regions, leaves no gap, or
    if by that matrix it would not help: late in its course a plan counts on rows still to come, and
    more steps do not make up for them.
    """
    if plan.basis is None or plan.sampler is None or len(plan.regions) != 1:
        return None
    region, steps = plan.regions[0], len(plan.timesteps)
    ends = [s for s in region.computed if s >= after] + [steps]
    middles = {(a + b) // 2 for a, b in pairwise(ends) if b - a > 1}
    if not middles:
        return None
    computed = tuple(sorted({*region.computed, *middles}))
    mask = np.zeros((len(BETAS), steps), np.bool_)
    mask[:, list(computed)] = True
    gram, c = from_low_rank(plan.basis), np.asarray(plan.sampler)
    trace = diffuse(
        mask,
        [EDF(region.history, beta) for beta in BETAS],
        np.asarray(plan.timesteps),
        c,
        gram,
        given=np.asarray(region.weights)[:after],
    )
    # What an error in mid-course wants undone, and how fast, depends on how much course is left.
    made = [expected_error(computed, rows, gram, c) for rows in trace.weights]
    best = int(np.argmin(made))
    if made[best] >= expected_error(region.computed, np.asarray(region.weights), gram, c):
        return None
    rows = tuple(tuple(float(w) for w in row) for row in trace.weights[best])
    denser = replace(
        region, computed=computed, weights=rows, schedule=f"{region.schedule}, dense after {after}"
    )
    dense = replace(plan, regions=(denser,), checks=None, expected_error=None, chosen=None)
    return dense.validate()
