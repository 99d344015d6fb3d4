"""The dispatcher: what a step does under the plan. It decides; the executor obeys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..passes.plan_format import Plan
from .clock import Moment
from .recorder import Recording
from .slots import SlotSet

TOLERANCE = 0.25  # of the distance to the neighbouring step: bf16 timesteps are rounded


@dataclass
class GenerationState:
    """One generation under way: its plan, its slots by branch, what was seen of its grid."""

    serial: int
    seen: list[float] = field(default_factory=list[float])
    plan: Plan | None = None
    offset: int = 0  # plan step of the generation's first step; not 0 for image-to-image
    slots: dict[str, SlotSet] = field(default_factory=dict[str, SlotSet])
    recording: Recording | None = None
    full: str | None = None  # why the rest of the generation is computed in full


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
    if not _on_grid(state, moment, plans):
        detail = f"t={moment.timestep:g} at step {moment.step} is on no plan's grid."
        return Decision(None, moment.step, {}, "unknown step", detail)
    plan = state.plan
    assert plan is not None
    step = moment.step + state.offset
    rows: dict[str, tuple[float, ...]] = {}
    reason = None
    for schedule in plan.regions:
        if step in schedule.computed:
            continue
        row = schedule.weights[step]
        used = max((k + 1 for k, w in enumerate(row) if w != 0.0), default=0)
        wanted = [c for c in schedule.computed if c < step][-used:][::-1]
        held = _history(slots, schedule.region)
        if held[:used] == wanted:
            rows[schedule.region] = row
        else:
            reason = "history"
    detail = "The steps that the forecast needs were not all computed in this generation."
    return Decision(plan, step, rows, reason, detail if reason else "")


def _history(slots: SlotSet | None, region: str) -> list[int]:
    if slots is None:
        return []
    for name, ring in slots.rings.items():
        if name == region or name.startswith(f"{region}."):
            return ring.steps
    return []


def _on_grid(state: GenerationState, moment: Moment, plans: Sequence[Plan]) -> bool:
    """Whether the generation so far lies on a plan's grid; binds the plan to the state."""
    if state.plan is not None:  # bound: earlier steps were checked when they came
        last = state.offset + len(state.seen) - 1
        if last < len(state.plan.timesteps) and _close(state.plan, last, state.seen[-1]):
            return True
    for plan in plans:
        for offset in _starts(plan, state.seen[0]):
            if _matches(plan, offset, state.seen):
                state.plan, state.offset = plan, offset
                return True
    state.plan = None
    return False


def _starts(plan: Plan, timestep: float) -> list[int]:
    return [i for i in range(len(plan.timesteps)) if _close(plan, i, timestep)]


def _matches(plan: Plan, offset: int, seen: Sequence[float]) -> bool:
    if offset + len(seen) > len(plan.timesteps):
        return False
    return all(_close(plan, offset + i, t) for i, t in enumerate(seen))


def _close(plan: Plan, index: int, timestep: float) -> bool:
    grid = plan.timesteps
    near = [abs(grid[index] - grid[j]) for j in (index - 1, index + 1) if 0 <= j < len(grid)]
    return abs(grid[index] - timestep) <= TOLERANCE * min(near, default=1.0)
