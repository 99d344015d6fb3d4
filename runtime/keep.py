"""What a step computed, written into the slots; where there is no memory for that, done without."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .dispatcher import Decision
from .generation_state import Step
from .offload import Offload
from .program import Program
from .session import Session

NO_MEMORY = "no memory for slots"
NO_MEMORY_THEN = (
    "The rest of the generation computes in full. slot_format='fp8_e4m3' halves the slots of a "
    "bf16 model; a plan for the whole denoiser has the smallest ones."
)


def keep(
    session: Session,
    program: Program,
    step: Step,
    decision: Decision,
    values: Mapping[str, Tensor],
) -> None:
    """Write the computed values of planned steps into their slots.

    A step that computes against the plan leaves the slots as they are: the rows that follow were
    solved for the planned history.
    """
    plan, slots = decision.plan, step.slots
    assert plan is not None
    planned = {s.region for s in plan.regions if decision.step in s.computed}
    if plan.rule is not None:  # whatever was computed counts
        planned = set(program.region_of.values())
        if slots.verdict is not None:
            slots.verdict.clear()  # distances add up from the last computed step
        judge = step.state.judges.get(step.moment.branch)
        if judge is not None and not decision.rows:
            moved = {n: v for n, v in values.items() if n in program.measured}
            judge.computed(decision.step, moved, slots)
    wanted = {n: v for n, v in values.items() if program.region_of.get(n) in planned}
    offload = None if plan.rule is not None else session.offload  # a device decides on what it has
    push(session, program, step, wanted, offload)


def push(
    session: Session,
    program: Program,
    step: Step,
    values: Mapping[str, Tensor],
    offload: Offload | None = None,
) -> None:
    """Write values into slots, made on first use.

    Out of memory, captured graphs are given up first; then the slots themselves, and the rest of
    the generation computes in full.
    """
    slots, at = step.slots, step.moment.step
    for name, value in values.items():
        history, kind = program.histories[name], program.formats[name]
        owner = program.region_of.get(name)
        try:
            try:
                slots.push(name, at, value, history, owner, kind=kind, offload=offload)
            except torch.OutOfMemoryError:
                if session.captured is None or not session.captured.nbytes:
                    raise
                session.captured.clear()
                slots.push(name, at, value, history, owner, kind=kind, offload=offload)
        except torch.OutOfMemoryError:
            slots.rings.clear()
            step.state.full = NO_MEMORY
            session.stats.fall_back(NO_MEMORY, NO_MEMORY_THEN)
            return
    session.stats.most_slot_bytes = max(
        session.stats.most_slot_bytes, session.generations.slot_bytes
    )
