"""The guard: at computed steps the forecast that was not needed is compared with the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels.probe import probe
from ..passes.densify import densify
from ..passes.plan_format import Plan
from .dispatcher import Decision
from .generation_state import GenerationState
from .late_reads import LateReads, to_device, waits
from .slots import SlotSet
from .stats import Stats

FACTOR = 2.5
"""Times the calibrated rms at which a residual is an alarm."""
DENSE_HELD = 64
MANY, SHARE = 3, 0.3
"""Alarms, and of all generations, from which on `warn` speaks: two recordings tell little of how
much generations differ, and an odd one among many is nobody's fault."""
LEFT = "the generation left its plan"
WAITS = (
    "guard='compute' waits for the device at each computed step: for the decision to stay on the "
    "device, cuda_graphs has to be on and conditional nodes have to be there"
)


@dataclass
class Guard:
    """Watches the generations of one model.

    At each computed step the plan's check (`Plan.checks`) forecasts the output from those before
    it; |y - forecast| / |y| over its calibrated rms is the strain. More than `FACTOR` is an alarm,
    once a generation: it says that the sample is harder than those calibrated on, not that the plan
    is bad. Then `warn` counts it, and says so once where they are many, `densify` computes more of
    what is left of this generation, `compute` all of it, and `recalibrate` has the next generations
    recorded. A grid that is not the plan's is not seen here but by the dispatcher.

    On a CUDA device the figures are read late, and an alarm comes some calls after its step;
    `densify` waits for them. So does `compute`, unless decisions stay `on_device`: a check raises a
    flag there, which the skipped steps that follow obey (`passes.guarded_step`).
    """

    action: str
    stats: Stats
    late: LateReads
    on_device: bool = False
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
        given = [*ring.physical(weights), FACTOR * rms]
        numbers = torch.tensor(given, dtype=torch.float32, device="cpu")
        numbers = to_device(numbers, value.device)
        figures = probe(
            value,
            ring.read(),
            weights=numbers[:-1],
            norm="l2",
            relative_to="value",
            limit=numbers[-1:],
            verdict=slots.verdict_on(value.device),
            sticky=True,
        )

        def judge(figures: Tensor) -> None:
            moved, size = figures.tolist()
            if self._count(moved / max(size * rms, 1e-30)) > FACTOR and not state.alarmed:
                self._alarm(state, plan, decision.step)

        if waits(figures) and not self._waits():
            self.late.read(figures, judge)
        else:
            judge(figures)

    def _waits(self) -> bool:
        """Whether what follows from an alarm has to be known before the next step."""
        if self.action == "compute" and not self.on_device:
            self.stats.say("guard waits", WAITS)
            return True
        return self.action == "densify"

    def made_anew(self) -> None:
        """The plan has been replaced; from now on alarms are counted, so that this happens once."""
        self.wanted, self.action = None, "warn"

    def _count(self, strain: float) -> float:
        self.stats.checks += 1
        self.stats.worst_strain = max(self.stats.worst_strain, strain)
        return strain

    def _alarm(self, state: GenerationState, plan: Plan, step: int) -> None:
        state.alarmed = True
        self.stats.alarms += 1
        if self.action == "densify":
            denser = self._denser(plan, step)
            if denser is not None:
                state.plan = denser
                self.stats.densified += 1
        elif self.action == "compute":
            state.full = LEFT
        elif self.action == "recalibrate" and self.wanted is None:
            self.wanted = plan
        alarms, generations = self.stats.alarms, self.stats.generations
        if self.action == "warn" and alarms < max(MANY, SHARE * generations):
            return
        self.stats.say(
            "guard",
            f"in {alarms} of {generations} generations (now at step {step}) the model changed more "
            f"than {FACTOR:g} times as fast as in calibration; they are counted in "
            "ditcache.summary. Many of them mean that prompts, guidance or resolution are far from "
            "those calibrated on, or that these were few: calibrate again, or use "
            "options={'guard': 'densify'}.",
        )

    def _denser(self, plan: Plan, step: int) -> Plan | None:
        known = self._dense.get((id(plan), step))
        if known is None or known[0] is not plan:
            while len(self._dense) >= DENSE_HELD:
                del self._dense[next(iter(self._dense))]
            known = self._dense[id(plan), step] = (plan, densify(plan, step))
        return known[1]
