"""The guidance scale: which branch it multiplies, and how far from its own a plan still serves."""

from __future__ import annotations

from collections.abc import Sequence

from .plan_format import PlanError

REACH = 2.0
"""Up to so many times the scale that it was made at, a plan does as well as one made there."""


def farthest(made_at: float) -> float:
    """The highest guidance scale that what was made at `made_at` still serves."""
    return REACH * made_at


def solved_scale(calibrated: float | None, wanted: float | None) -> float | None:
    """The guidance scale whose Gram matrix a plan for `wanted` is solved on.

    Up to the calibrated one the wanted scale itself: the algebra is exact for the outputs of the
    recorded courses. Above it the calibrated one: the courses of a stronger guidance are others,
    and the algebra would only add noise. Raises `PlanError` beyond `farthest(calibrated)`.
    """
    if calibrated is None or wanted is None or wanted <= calibrated:
        return wanted
    if wanted > farthest(calibrated):
        raise PlanError(
            f"guidance {wanted:g} is more than {REACH:g} times the {calibrated:g} that was "
            "calibrated; calibrate again at the guidance that will be used"
        )
    return calibrated


def conditional(branches: Sequence[str]) -> int:
    """Index of the branch that the guidance scale multiplies: the one so named, else the first."""
    return named_conditional(branches) or 0


def named_conditional(branches: Sequence[str]) -> int | None:
    """Index of the branch whose name says that it is the conditional one, None if none does."""
    for index, name in enumerate(branches):
        if name.lower() in ("cond", "conditional", "positive", "pos", "text"):
            return index
    return None
