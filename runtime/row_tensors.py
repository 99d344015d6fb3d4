"""The rows of forecast weights as tensors, made once for each rotation of the ring."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from ..passes.plan_format import Plan, RegionSchedule
from ..passes.policies import device_limit
from .late_reads import to_device
from .slots import Ring, SlotSet, physical

PLANS_HELD = 32
"""Plans whose weights are kept as tensors; more are in use only while candidates are tried."""


class RowTensors:
    """Rows of the plans in use, f32[K] each, in the physical order and on the device of a ring."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Plan, dict[Hashable, Tensor]]] = {}

    def of_step(
        self, plan: Plan, step: int, rows: Mapping[str, tuple[float, ...]], slots: SlotSet
    ) -> dict[str, Tensor]:
        """The rows of a step of the plan by region, given with the newest entry's weight first.

        Each region has its ring: the dispatcher has looked at its history.
        """
        return {
            region: self._row(plan, step, region, row, ring)
            for region, row in rows.items()
            if (ring := slots.of(region)) is not None
        }

    def tables(self, plan: Plan, step: int, slots: SlotSet) -> dict[str, Tensor]:
        """The rows of all steps by region, f32[steps, K]: a device takes that of its own clock.

        How a ring is turned at other steps follows from how it is at this one, which no region
        computes.
        """
        return {
            schedule.region: self._table(plan, schedule, step, ring)
            for schedule in plan.regions
            if (ring := slots.of(schedule.region)) is not None
        }

    def _table(self, plan: Plan, schedule: RegionSchedule, step: int, ring: Ring) -> Tensor:
        turned = (ring.rotation - bisect_left(schedule.computed, step)) % ring.history
        key = ("table", schedule.region, turned, ring.history)
        made = self._of(plan).get(key)
        if made is None or made.device != ring.buffer.device:
            rows: list[list[float]] = []
            for at, row in enumerate(schedule.weights):
                newest = turned + bisect_left(schedule.computed, at)
                rows.append(physical(row, newest, ring.history))
            table = torch.tensor(rows, dtype=torch.float32, device="cpu")
            made = self._of(plan)[key] = to_device(table, ring.buffer.device)
        return made

    def limit(self, plan: Plan, device: torch.device) -> Tensor:
        """The limit of the plan's rule, f32[1]; raises ValueError if that is more than one."""
        known = self._of(plan)
        made = known.get(("limit", device))
        if made is None:
            found = None if plan.rule is None else device_limit(plan.rule)
            if found is None:
                raise ValueError(f"the rule of plan {plan.policy!r} is no limit on one distance")
            limit = torch.tensor([found.limit], dtype=torch.float32, device="cpu")
            made = known["limit", device] = to_device(limit, device)
        return made

    def clear(self) -> None:
        """Forget all rows."""
        self._known.clear()

    def _row(
        self, plan: Plan, step: int, region: str, row: tuple[float, ...], ring: Ring
    ) -> Tensor:
        known, key = self._of(plan), (region, step, ring.rotation)
        if plan.rule is not None:  # the row depends on which steps happened to compute
            key = (region, *row) if ring.history == 1 else None
        made = None if key is None else known.get(key)
        if made is None or made.device != ring.buffer.device:
            weights = torch.tensor(ring.physical(row), dtype=torch.float32, device="cpu")
            made = to_device(weights, ring.buffer.device)
            if key is not None:
                known[key] = made
        return made

    def _of(self, plan: Plan) -> dict[Hashable, Tensor]:
        known = self._known.get(id(plan))
        if known is None or known[0] is not plan:  # held, so that no other plan gets its id
            while len(self._known) >= PLANS_HELD:
                del self._known[next(iter(self._known))]
            known = self._known[id(plan)] = (plan, {})
        return known[1]
