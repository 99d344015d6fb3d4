"""The dispatcher: what a step does under the plan. It decides; the executor obeys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..passes.plan_format import Plan
from .clock import Moment
from .recorder import Recording
from .slots import SlotSet

if TYPE_CHECKING:
    from .judge import Judge

CHANGED_SHAPE = "changed shape"
TOLERANCE = 0.25  # of the distance to the neighbouring step: bf16 timesteps are rounded


@dataclass(frozen=True)
class Sample:
    """Shape and dtype of what the planned region gave; several live-outs count as one vector."""

    shape: tuple[int, ...]
    dtype: str

    def suits(self, plan: Plan) -> bool:
        """Whether the plan was made for outputs like this one, at whatever batch size."""
        if plan.shape is None:
            return True
        keep = 1 if len(self.shape) > 1 else 0
        same = self.shape[keep:] == tuple(plan.shape[keep:]) and len(self.shape) == len(plan.shape)
        return same and plan.dtype in (None, self.dtype)


@dataclass
class GenerationState:
    """One generation under way: its plan, its slots by branch, what was seen of its grid."""

    serial: int
    seen: list[float] = field(default_factory=list[float])
    plan: Plan | None = None
    offset: int = 0  # plan step of the generation's first step; not 0 for image-to-image
    slots: dict[str, SlotSet] = field(default_factory=dict[str, SlotSet])
    sample: Sample | None = None  # None until the first step has computed
    recording: Recording | None = None
    judges: dict[str, Judge] = field(default_factory=dict[str, "Judge"])  # of rules, by branch
    clashes: int = 0  # how many generations in a row began because latents took turns
    short: bool = False  # whether the generation before had one step only
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
    if (missed := _bind(state, plans)) is not None:
        reason, detail = missed
        return Decision(None, moment.step, {}, reason, detail)
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
        wanted = [c - state.offset for c in schedule.computed if c < step][-used:][::-1]
        held = _history(slots, schedule.region)
        if plan.rule is not None:  # which steps compute is seen as they come: any history will do
            wanted = held[: max(used, 1)]
            used = max(used, 1)
        if len(wanted) >= used and held[:used] == wanted:
            rows[schedule.region] = row
        else:
            reason = "history"
    detail = "The steps that the forecast needs were not all computed in this generation."
    return Decision(plan, step, rows, reason, detail if reason else "")


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
    shape: Plan | None = None
    starts = [(offset, plan) for plan in plans for offset in _starts(plan, state.seen[0])]
    starts.sort(
        key=lambda pair: pair[0] > 0
    )  # a whole run of one plan before a late start of another
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
    grid = plan.timesteps
    near = [abs(grid[index] - grid[j]) for j in (index - 1, index + 1) if 0 <= j < len(grid)]
    return abs(grid[index] - timestep) <= TOLERANCE * min(near, default=1.0)
