"""Densify: compute more of what is left of a generation, knowing what went wrong so far."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from .checks import from_low_rank
from .error_diffusion import diffuse
from .forecasters import EDF
from .plan_format import Plan


def densify(plan: Plan, after: int) -> Plan | None:
    """The plan with a computed step in the middle of every gap that begins at or after `after`.

    Up to that step nothing changes. The rows that follow are solved anew by error diffusion on the
    Gram matrix that the plan carries, starting from the error that the plan's own rows have
    accumulated. None if the plan carries no such matrix, is for several regions, or leaves no gap.
    """
    if plan.basis is None or plan.sampler is None or len(plan.regions) != 1:
        return None
    region, steps = plan.regions[0], len(plan.timesteps)
    ends = [s for s in region.computed if s >= after] + [steps]
    middles = {(a + b) // 2 for a, b in pairwise(ends) if b - a > 1}
    if not middles:
        return None
    computed = tuple(sorted({*region.computed, *middles}))
    mask = np.zeros((1, steps), np.bool_)
    mask[0, list(computed)] = True
    trace = diffuse(
        mask,
        [EDF(region.history)],
        np.asarray(plan.timesteps),
        np.asarray(plan.sampler),
        from_low_rank(plan.basis),
        given=np.asarray(region.weights)[:after],
    )
    rows = tuple(tuple(float(w) for w in row) for row in trace.weights[0])
    denser = replace(
        region, computed=computed, weights=rows, schedule=f"{region.schedule}, dense after {after}"
    )
    made = replace(plan, regions=(denser,), checks=None, expected_error=None, chosen=None)
    return made.validate()
