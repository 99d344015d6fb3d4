"""The ways to run a step: in full, as its plan says, or as a device decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from ..kernels.clock import clock as tick
from ..passes.ir import StepGraph
from ..passes.plan_format import Plan
from . import dispatcher, stepped
from .dispatcher import Decision
from .generation_state import GenerationState, Step
from .judge import judge_of
from .keep import keep, push
from .late_reads import waits
from .program import Program
from .row_tensors import RowTensors
from .session import Session
from .step_inputs import StepInputs
from .values import (
    all_finite,
    any_waits,
    by_region,
    denoised,
    denoised_indices,
    finite_flag,
    main_of,
    sample,
)

NOT_FINITE = "NaN or infinity in a forecast"
NOT_FINITE_THEN = "The rest of the generation computes in full."


class Ways:
    """Runs steps of one compiled graph, counts them, and keeps what they gave.

    `program` gives the program for a plan, `refuses` says whether one does not fit the graph.
    """

    def __init__(
        self,
        graph: StepGraph,
        session: Session,
        inputs: StepInputs,
        program: Callable[[Plan | None], Program],
        refuses: Callable[[Plan], bool],
    ) -> None:
        self.rows = RowTensors()
        self._session = session
        self._inputs = inputs
        self._program = program
        self._refuses = refuses
        self._denoised = denoised_indices(graph)

    def full(self, args: Sequence[Any], step: Step | None = None) -> Any:
        """Compute everything; of a known step, hand the outputs to the recording if there is one.

        `args` are the graph's inputs, those of `step` if that is given.
        """
        program = self._program(None)
        outputs, values = program.run(program.full, args, None, {})
        self._session.stats.computed += 1
        if step is not None and step.moment.step == 0:
            stepped.note(step.state, self._alone(outputs))
        if step is not None and step.state.recording is not None:
            self._record(step, outputs, by_region(values, program.region_of))
        return outputs

    def planned(self, step: Step, decision: Decision) -> Any:
        """Do what the plan says; what it leaves open is decided by the host or by the device."""
        plan, slots = decision.plan, step.slots
        assert plan is not None
        program = self._program(plan)
        carried: dict[str, Any] | None = None
        if plan.rule is not None:
            if program.decides and decision.rows and program.has_references(slots):
                return self._on_device(step, decision, program)
            judge = judge_of(step.state, step.moment.branch, plan)
            at = step.moment.step
            decision, carried = judge.decide(decision, program, step.args, slots, at)
        modes = program.modes(decision.rows)
        if not program.has(modes):
            modes = program.full
        if plan.rule is None and (timestep := self.guarded(step.args)) is not None:
            if all(modes) and program.decides:
                return self._on_device(step, decision, program)
            tick(timestep, *slots.clock(plan, decision.step, timestep.device))
        if any(modes):
            if not self._session.replaying:
                step.state.recording = None  # a generation with forecasts is no measurement
            rows = self.rows.of_step(plan, decision.step, decision.rows, slots)
            outputs, values = program.run(modes, step.args, slots, rows, carried)
            if not self.sound(outputs, step.state):
                return self._spoilt(step)
            self._session.stats.forecast += 1
            if step.state.recording is not None:
                self._record(step, outputs, self._of_parts(plan, outputs))
        else:
            outputs, values = self._computed(step, plan, program, carried)
        if values:
            self._session.guard.look(step.state, decision, slots, values, program.region_of)
            if step.state.sample is None:
                decision = self._suited(step, decision, outputs)
            if decision.plan is not None:
                keep(self._session, self._program(decision.plan), step, decision, values)
        return outputs

    def guarded(self, args: Sequence[Any]) -> Tensor | None:
        """The timestep of a call whose generation is guarded on the device; None of any other."""
        guard, timestep = self._session.guard, self._inputs.timestep(args)
        if guard.action != "compute" or not guard.on_device:
            return None
        here = isinstance(timestep, Tensor) and waits(timestep) and self._inputs.together(args)
        return timestep if here else None

    def sound(self, outputs: Any, state: GenerationState) -> bool:
        """Whether a forecast is finite; on a device that is taken for granted and seen later."""

        def seen(flag: Tensor) -> None:
            if not flag.item():
                self._not_finite(state)

        flag = finite_flag(outputs) if any_waits(outputs) else None
        if flag is None:
            return all_finite(outputs)
        self._session.late.read(flag, seen)
        return True

    # How -------------------------------------------------------------------------------------

    def _computed(
        self, step: Step, plan: Plan, program: Program, carried: Mapping[str, Any] | None
    ) -> tuple[Any, Mapping[str, Tensor]]:
        """Compute everything, and hand out what the plan keeps."""
        state, first = step.state, step.moment.step == 0
        outputs, values = program.run(program.full, step.args, step.slots, {}, carried)
        self._session.stats.computed += 1
        found: dict[str, Tensor] = {}
        if state.recording is not None or first:
            found = by_region(values, program.region_of)
        if first:
            stepped.note(state, self._alone(outputs))
            if plan.guidance is not None:
                state.guidance.saw(self._inputs.latents(step.args), found.get("denoiser"))
        if state.recording is not None:
            self._record(step, outputs, found | self._of_parts(plan, outputs))
        return outputs, values

    def _on_device(self, step: Step, decision: Decision, program: Program) -> Any:
        """A step of which the device decides whether it is computed: that is counted later."""
        plan, slots = decision.plan, step.slots
        assert plan is not None
        device = next(iter(slots.rings.values())).buffer.device
        verdict = slots.verdict_on(device)
        state = {"flag": verdict.flag}
        if plan.rule is not None:
            state |= {"limit": self.rows.limit(plan, device), "running": verdict.running}
            rows = self.rows.of_step(plan, decision.step, decision.rows, slots)
            computed = verdict.flag
        else:
            grid, dial = slots.clock(plan, decision.step, device)
            state |= {"times": grid.timesteps, "within": grid.within, "dial": dial.state}
            rows = self.rows.tables(plan, decision.step, slots)
            computed = dial.left
        outputs, values = program.decided(step.args, slots, rows, state)
        step.state.recording = None
        self._count(computed, program.decided_macs)
        if not self.sound(outputs, step.state):
            return self._spoilt(step)
        push(self._session, program, step, values)
        return outputs

    # What follows ----------------------------------------------------------------------------

    def _count(self, flag: Tensor, macs: int) -> None:
        """Count a step that the device has computed, `macs` more, or not, once that is known."""
        stats = self._session.stats

        def count(computed: Tensor) -> None:
            if computed.item():
                stats.computed += 1
                stats.macs += macs
            else:
                stats.forecast += 1

        if waits(flag):
            self._session.late.read(flag, count)
        else:
            count(flag)

    def _spoilt(self, step: Step) -> Any:
        """Compute a step in full whose forecast is not finite."""
        self._not_finite(step.state)
        return self.full(step.args, step)

    def _not_finite(self, state: GenerationState) -> None:
        """Compute the rest in full; what the slots hold may not get into another generation."""
        state.full = NOT_FINITE
        for slots in state.slots.values():
            slots.rings.clear()
        self._session.stats.fall_back(NOT_FINITE, NOT_FINITE_THEN)

    def _suited(self, step: Step, decision: Decision, outputs: Any) -> Decision:
        """The decision once the output's shape is seen: perhaps another plan's, or none's."""
        state = step.state
        state.sample = sample(outputs, self._denoised)
        if state.sample is None or decision.plan is None or state.sample.suits(decision.plan):
            return decision
        state.plan = None  # there may be one for this shape on the same grid
        decision = dispatcher.decide(state, step.moment, None, self._session.plans_for(state))
        if decision.plan is None:
            self._session.stats.fall_back(decision.reason or "", decision.detail)
        elif self._refuses(decision.plan):
            return replace(decision, plan=None)
        return decision

    def _record(self, step: Step, outputs: Any, values: Mapping[str, Tensor]) -> None:
        """Hand a call to its generation's recording, with the values of regions."""
        latents, recording = self._inputs.latents(step.args), step.state.recording
        assert recording is not None
        recording.add(step.moment, latents, values, main_of(outputs, self._denoised, latents))

    def given(self, outputs: Any) -> tuple[Tensor, ...]:
        """What the denoiser gave, of all that the graph gives."""
        given = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        return tuple(cast(Tensor, given[i]) for i in self._denoised)

    def _alone(self, outputs: Any) -> Tensor | None:
        """What the denoiser gave, if that is one output."""
        given = self.given(outputs)
        return given[0] if len(given) == 1 else None

    def _of_parts(self, plan: Plan, outputs: Any) -> dict[str, Tensor]:
        """What a plan for parts of the denoiser gave, at every step something new, for replays."""
        whole = any(s.region == "denoiser" for s in plan.regions)
        if whole or not self._session.replaying:
            return {}
        return denoised(outputs, self._denoised)
