"""Budgets: how much of a run may be computed, as steps, as a speedup or as an error."""

from __future__ import annotations

import math
from numbers import Integral, Real

from .plan_format import PlanError

FEWEST = 2
"""Fewest computed steps of any plan: one output alone says nothing about how they change."""


def check_budget(
    *, computed_steps: object = None, speedup: object = None, max_error: object = None
) -> None:
    """Raise `PlanError` unless exactly one budget is given, and is a number that can be one."""
    if sum(b is not None for b in (computed_steps, speedup, max_error)) != 1:
        raise PlanError("give exactly one of computed_steps, speedup and max_error")
    if computed_steps is not None and not isinstance(computed_steps, Integral):
        raise PlanError(f"computed_steps must be a whole number, got {computed_steps!r}")
    if speedup is not None and not 1.0 <= _number(speedup) < math.inf:
        raise PlanError(f"speedup must be a number of at least 1, got {speedup!r}")
    if max_error is not None and not _number(max_error) >= 0.0:
        raise PlanError(f"max_error must be a relative error of at least 0, got {max_error!r}")


def steps_for(steps: int, *, computed_steps: int | None, speedup: float | None) -> int:
    """Return the computed steps for a budget on a grid of `steps`; `PlanError` if out of reach."""
    check_budget(computed_steps=computed_steps, speedup=speedup)
    fewest = min(FEWEST, steps)
    if speedup is not None:
        # The small addition makes 50 / 2.5 come out as 20 whatever the rounding.
        n = math.floor(steps / speedup + 1e-9)
        if n < fewest:
            raise PlanError(
                f"speedup {speedup:g} is out of reach on {steps} steps (it leaves {n} to compute); "
                f"the nearest is {steps / fewest:g} with {fewest} computed steps"
            )
        return n
    n = int(computed_steps or 0)
    if not fewest <= n <= steps:
        raise PlanError(
            f"computed_steps {computed_steps} is out of reach on {steps} steps; "
            f"the nearest is {min(max(n, fewest), steps)}"
        )
    return n


def _number(value: object) -> float:
    return float(value) if isinstance(value, Real) else math.nan
