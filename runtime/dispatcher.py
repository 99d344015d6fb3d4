"""The dispatcher: what a step does under the plan. It decides; the executor obeys."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ..passes.plan_format import Plan
from .foresight import close_to
from .generation_state import GenerationState
from .slots import SlotSet
from .track import Moment

CHANGED_SHAPE = "changed shape"


@dataclass(frozen=True)
class Decision:
    """Forecast which regions, with which rows (newest first); or the reason for computing."""

    plan: Plan | None
    step: int  # in the plan's numbering
    rows: dict[str, tuple[float, ...]]
    reason: str | None = None
    detail: str = ""


def decide(
    state: GenerationState, moment: Moment, slots: SlotSet | None, plans: Sequence[Plan]
) -> Decision:
    """What the plan says about this moment, if the plan, the grid and the history all agree.

    A region is forecast only if its ring holds exactly the computed steps that the plan's row was
    solved for. Whatever does not agree is computed, with the reason.
    """
    if state.full is not None:
        return Decision(None, moment.step, {}, state.full)
    if not plans:
        return Decision(None, moment.step, {})
    if (missed := _bind(state, plans)) is not None:
        reason, detail = missed
        return Decision(None, moment.step, {}, reason, detail)
    plan = state.plan
    assert plan is not None
    step = moment.step + state.offset
    rows, complete = _rows(plan, step, state.offset, slots)
    reason = None if complete else "history"
    detail = "The steps that the forecast needs were not all computed in this generation."
    return Decision(plan, step, rows, reason, detail if reason else "")


def foresee(
    state: GenerationState, moment: Moment, plans: Sequence[Plan]
) -> dict[str, tuple[float, ...]] | None:
    """The rows of a step of which every region is forecast; None where anything has to be computed.

    For a moment that is not entered yet: decides nothing, changes nothing.
    """
    plan, slots = state.plan, state.slots.get(moment.branch)
    seen = len(state.seen)
    goes_on = moment.serial == state.serial and seen - 1 <= moment.step <= seen
    if not goes_on or state.full is not None or slots is None or state.sample is None:
        return None
    if plan is None or plan.rule is not None or not any(plan is p for p in plans):
        return None
    step = moment.step + state.offset
    if step >= len(plan.timesteps) or not _close(plan, step, moment.timestep):
        return None
    rows, complete = _rows(plan, step, state.offset, slots)
    return rows if complete and len(rows) == len(plan.regions) else None


def _rows(
    plan: Plan, step: int, offset: int, slots: SlotSet | None
) -> tuple[dict[str, tuple[float, ...]], bool]:
    """The row of each region that is forecast; whether all that should be have their history."""
    rows: dict[str, tuple[float, ...]] = {}
    complete = True
    for schedule in plan.regions:
        before = bisect_left(schedule.computed, step)
        if schedule.computed[before : before + 1] == (step,):
            continue
        row = schedule.weights[step]
        used = max((k + 1 for k, w in enumerate(row) if w != 0.0), default=0)
        wanted = [c - offset for c in reversed(schedule.computed[max(before - used, 0) : before])]
        held = _history(slots, schedule.region)
        if plan.rule is not None:  # which steps compute is seen as they come: any history will do
            used = max(used, 1)
            wanted = held[:used]
        if len(wanted) >= used > 0 and held[:used] == wanted:
            rows[schedule.region] = row
        else:
            complete = False
    return rows, complete


def _history(slots: SlotSet | None, schedule: str) -> list[int]:
    ring = slots.of(schedule) if slots is not None else None
    return ring.steps if ring is not None else []


def _bind(state: GenerationState, plans: Sequence[Plan]) -> tuple[str, str] | None:
    """Bind a plan to the state, on whose grid and for whose shape the generation is so far.

    Gives the reason and its detail where there is none.
    """
    if state.plan is not None:  # bound: earlier steps were checked when they came
        last = state.offset + len(state.seen) - 1
        if last < len(state.plan.timesteps) and _close(state.plan, last, state.seen[-1]):
            return None
        if last == len(state.plan.timesteps):
            state.outran = state.plan
    shape: Plan | None = None
    starts = [(offset, plan) for plan in plans for offset in _starts(plan, state.seen[0])]
    # A whole run of one plan before a late start of another; of grids that begin alike the longest,
    # as a generation that was cut short leaves a grid that is another's beginning.
    starts.sort(key=lambda pair: (pair[0] > 0, -len(pair[1].timesteps)))
    for offset, plan in starts:
        if _matches(plan, offset, state.seen):
            if state.sample is None or state.sample.suits(plan):
                state.plan, state.offset = plan, offset
                return None
            shape = plan
    state.plan = None
    if shape is not None:
        text = f"The plan is for {shape.dtype}{list(shape.shape or ())}, the model gives"
        return CHANGED_SHAPE, f"{text} {state.sample}."
    step, timestep = len(state.seen) - 1, state.seen[-1]
    return "unknown step", f"t={timestep:g} at step {step} is on no plan's grid."


def _starts(plan: Plan, timestep: float) -> list[int]:
    return [i for i in range(len(plan.timesteps)) if _close(plan, i, timestep)]


def _matches(plan: Plan, offset: int, seen: Sequence[float]) -> bool:
    if offset + len(seen) > len(plan.timesteps):
        return False
    return all(_close(plan, offset + i, t) for i, t in enumerate(seen))


def _close(plan: Plan, index: int, timestep: float) -> bool:
    return close_to(plan.timesteps, index, timestep)
