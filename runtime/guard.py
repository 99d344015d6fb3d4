"""The guard: at computed steps the forecast that was not needed is compared with the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..passes.densify import densify
from ..passes.plan_format import Plan
from .dispatcher import Decision, GenerationState
from .late_reads import LateReads, waits
from .slots import SlotSet
from .stats import Stats

FACTOR = 2.5
"""Times the calibrated rms at which a residual is an alarm."""
LOOKED_AT = 4096
"""Numbers of an output that are compared, evenly spread: enough for a ratio to within percents."""
DENSE_HELD = 64


@dataclass
class Guard:
    """Watches the generations of one model.

    At each computed step the plan's check (`Plan.checks`) forecasts the output from those before
    it; |y - forecast| / |y| over its calibrated rms is the strain. More than `FACTOR` is an alarm,
    once a generation: it says that the sample is harder than those calibrated on, not that the plan
    is bad. Then `warn` counts it and says so once, `densify` computes more of what is left of this
    generation, and `recalibrate` has the next generations recorded. A grid that is not the plan's
    is not seen here but by the dispatcher.

    On a CUDA device `densify` waits for the device at each computed step; otherwise the figures are
    read late, and an alarm comes some calls after its step.
    """

    action: str
    stats: Stats
    late: LateReads
    wanted: Plan | None = None  # to be made anew, set by "recalibrate"
    _dense: dict[tuple[int, int], tuple[Plan, Plan | None]] = field(
        default_factory=dict[tuple[int, int], "tuple[Plan, Plan | None]"]
    )

    def look(
        self,
        state: GenerationState,
        decision: Decision,
        slots: SlotSet,
        values: Mapping[str, Tensor],
        region_of: Mapping[str, str],
    ) -> None:
        """Compare a computed step, before its values are written into the slots."""
        plan = decision.plan
        if self.action == "off" or plan is None or plan.checks is None or state.alarmed:
            return
        region = plan.regions[0]
        names = [slot for slot in values if region_of.get(slot) == region.region]
        if len(names) != 1 or decision.step not in region.computed:
            return
        rms, *weights = plan.checks[region.computed.index(decision.step)]
        ring = slots.rings.get(names[0])
        used = max((k + 1 for k, w in enumerate(weights) if w), default=0)
        if rms == 0.0 or ring is None or len(ring.steps) < used:
            return
        value = values[names[0]]
        stride = max(1, value.numel() // LOOKED_AT)
        truth = value.reshape(-1)[::stride].float()
        made = torch.zeros_like(truth)
        for k in range(used):
            made.add_(ring.entry(k).reshape(-1)[::stride].float(), alpha=weights[k])
        strain = (truth - made).norm() / (truth.norm() * rms).clamp_min(1e-30)

        def judge(strain: Tensor) -> None:
            if self._count(strain) > FACTOR and not state.alarmed:
                self._alarm(state, plan, decision.step)

        if waits(strain) and self.action != "densify":
            self.late.read(strain, judge)
        else:
            judge(strain)

    def made_anew(self) -> None:
        """The plan has been replaced; from now on alarms are counted, so that this happens once."""
        self.wanted, self.action = None, "warn"

    def _count(self, strain: Tensor) -> float:
        found = float(strain)
        self.stats.checks += 1
        self.stats.worst_strain = max(self.stats.worst_strain, found)
        return found

    def _alarm(self, state: GenerationState, plan: Plan, step: int) -> None:
        state.alarmed = True
        self.stats.alarms += 1
        if self.action == "densify":
            denser = self._denser(plan, step)
            if denser is not None:
                state.plan = denser
                self.stats.densified += 1
        elif self.action == "recalibrate" and self.wanted is None:
            self.wanted = plan
        self.stats.say(
            "guard",
            f"at step {step} the model changed more than {FACTOR:g} "
            "times as fast as in calibration; such generations are counted in ditcache.summary. "
            "Many of them mean that prompts, guidance or resolution are far from those calibrated "
            "on: calibrate again, or use options={'guard': 'densify'}.",
        )

    def _denser(self, plan: Plan, step: int) -> Plan | None:
        known = self._dense.get((id(plan), step))
        if known is None or known[0] is not plan:
            while len(self._dense) >= DENSE_HELD:
                del self._dense[next(iter(self._dense))]
            known = self._dense[id(plan), step] = (plan, densify(plan, step))
        return known[1]
