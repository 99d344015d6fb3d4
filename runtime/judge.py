"""The judge: a policy that decides by data, at work in one generation and guidance branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.probe import probe
from ..passes.forecasters import Taylor
from ..passes.plan_format import Plan
from ..passes.policies import Reading, decider
from .dispatcher import Decision
from .generation_state import GenerationState
from .program import Program
from .slots import Ring, SlotSet


class Judge:
    """Turns probes into a decision. The host waits for the device once in each decision.

    What measured slots say at a computed step is read together with the next decision's probes.
    """

    def __init__(self, plan: Plan) -> None:
        assert plan.rule is not None
        self.plan = plan
        self._rule = decider(plan.rule, len(plan.timesteps))
        self._order = plan.rule.order
        self._pending: list[tuple[int, list[Tensor | None]]] = []

    def decide(
        self,
        decision: Decision,
        program: Program,
        args: Sequence[Any],
        slots: SlotSet,
        step: int,
    ) -> tuple[Decision, dict[str, Any] | None]:
        """Decide about a step that the plan leaves open; `step` is that of the generation.

        Gives the decision and what the program's head computed; nothing where the plan decided.
        """
        if not decision.rows or not program.has_references(slots):
            return replace(decision, rows={}), None
        probes, carried = program.head(args, slots)
        if not self.skips(decision.step, probes):
            return replace(decision, rows={}), carried
        rows = {
            name: self.row(row, ring, step)
            for name, row in decision.rows.items()
            if (ring := slots.of(name)) is not None
        }
        return replace(decision, rows=rows), carried

    def skips(self, step: int, probes: Sequence[Tensor]) -> bool:
        """Whether to forecast this step; `probes` are f32[2] as `kernels.probe` gives them.

        A probe that is not finite means: compute.
        """
        waiting = [v for _, moved in self._pending for v in moved if v is not None]
        read = [*waiting, *probes]
        numbers = iter(torch.stack([v.to(read[0].device) for v in read]).tolist())
        for before, moved in self._pending:
            self._rule.computed(
                before, [None if v is None else Reading(*next(numbers)) for v in moved]
            )
        self._pending.clear()
        probed = [Reading(*pair) for pair in numbers]
        if not np.isfinite(probed).all():
            return False
        return self._rule.skips(step, probed)

    def computed(self, step: int, values: Mapping[str, Tensor], slots: SlotSet) -> None:
        """Tell the rule that `step` computed `values`, before they are written into the slots.

        `values` are those of measured slots.
        """
        moved: list[Tensor | None] = []
        for name, value in values.items():
            ring = slots.rings.get(name)
            if ring is None or not ring.steps or not ring.fits(value):
                moved.append(None)
            else:
                # The size that counts from here on is the new value's.
                before = ring.entry(0).unsqueeze(0)
                moved.append(probe(value, before, relative_to="value"))
        self._pending.append((step, moved))

    def row(self, row: tuple[float, ...], ring: Ring, step: int) -> tuple[float, ...]:
        """The weights for `step` (of the generation) over the steps that the ring holds."""
        if not self._order:
            return row
        held = ring.steps[: self._order + 1]
        last = np.array([held + [0] * (self._order + 1 - len(held))])
        prior = Taylor(self._order).prior(last, np.array([len(held)]), step, np.zeros(0))
        return tuple(float(w) for w in prior[0])


def judge_of(state: GenerationState, branch: str, plan: Plan) -> Judge:
    """The judge of a plan in a generation's branch, made on first use."""
    judge = state.judges.get(branch)
    if judge is None or judge.plan is not plan:
        judge = state.judges[branch] = Judge(plan)
    return judge
