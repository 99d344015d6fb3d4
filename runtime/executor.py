"""The executor: the callable that Dynamo runs in place of the step graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..passes import pipeline
from ..passes.base import PassContext, PassError
from ..passes.ir import InputKind, StepGraph, kind_of, placeholders
from ..passes.plan_format import Plan
from ..passes.verifier import VerifyError
from . import dispatcher
from .clock import Moment, read_timestep
from .config import Config
from .dispatcher import Decision, GenerationState
from .dynamo import compile_lock
from .judge import Judge
from .program import Program
from .roles import denoised_indices, is_size, latent_indices, timestep_index
from .seen import GraphIdentity
from .session import Session
from .slots import SlotSet
from .values import all_finite, by_region, sample
from .weights import WeightMark

PLANS_HELD = 32
"""Plans whose weights are kept as tensors; more are in use only while candidates are tried."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an executor: the graph's inputs and outputs."""

    executor: StepExecutor
    inputs: Sequence[Any]
    outputs: Any


# Where the calls of this thread or task are noted, for who wants to know.
observer: ContextVar[list[Call] | None] = ContextVar("ditcache_observer", default=None)


class StepExecutor:
    """Runs one compiled step: asks the clock when it is, the dispatcher what to do, does it.

    `graph` is the analysed step (passes up to tag-stability). A program is specialised and
    lowered from it for each plan in use, and one without a plan, whose denoiser output is written
    out for recording. `pure`: running the graph is all that a call of the model does.
    """

    def __init__(self, graph: StepGraph, session: Session, *, pure: bool = False) -> None:
        self.graph = graph
        self.pure = pure
        self.session = session
        inputs = placeholders(graph.graph)
        kinds = [kind_of(n) for n in inputs]
        self._names = [n.name for n in inputs]
        self._timestep = timestep_index(inputs)
        self._latents = latent_indices(inputs, graph)
        self._denoised = denoised_indices(graph)
        # Numbers too: one that steers the model may not change within a generation. Sizes do not
        # count: that inputs change shape is seen without them.
        source = {i: str(n.meta.get("source", n.name)) for i, n in enumerate(inputs)}
        steering = [
            i
            for i, k in enumerate(kinds)
            if k is InputKind.CONDITION or (k is InputKind.SCALAR and not is_size(source[i]))
        ]
        self._conditions = sorted(steering, key=lambda i: source[i])
        self._condition_names = ("graph", *(source[i] for i in self._conditions))
        self._identity = GraphIdentity(self, any(is_size(text) for text in source.values()))
        self.weights = WeightMark(graph.graph)
        self._programs: dict[Hashable, Program] = {}
        self._refused: dict[int, tuple[Plan, str]] = {}
        self._rows: dict[int, tuple[Plan, dict[tuple[str, int, int], Tensor]]] = {}
        self._checked: tuple[Any, int] | None = None  # the generation that weights were checked in
        self._macs = graph.region("denoiser").macs if graph.regions else 0
        self._macs += self.program(None).hoisted_macs
        self.watched = {self._timestep, *self._latents, *self._conditions}
        session.hoisted_bytes.append(self._hoisted_bytes)

    @property
    def macs(self) -> int:
        """MACs of one uncached call at the traced shape."""
        return self._macs

    def __call__(self, *args: Any) -> Any:
        """One call of the model: `args` are the graph's inputs; gives the graph's outputs."""
        outputs = self._run(args)
        if (calls := observer.get()) is not None:
            calls.append(Call(self, args, outputs))
        return outputs

    def forecast(self, args: Sequence[Any], unchanged: Callable[[], bool]) -> Any:
        """The outputs of a step that the plan skips as a whole; None if this call is no such step.

        `args` need to hold the inputs `watched` only: nothing else is read. `unchanged` is asked
        last whether the model is still the same. Where the answer is None, nothing has happened,
        and a call of the executor will say and do what there is to.
        """
        session = self.session
        timestep = read_timestep(args[self._timestep]) if self._timestep is not None else None
        if timestep is None or not session.enabled or session.replaying:
            return None
        latents = self._integrated(args)
        conditions = [self._identity, *[args[i] for i in self._conditions]]
        sighting = session.clock.look(timestep, latents, conditions, self._condition_names)
        moment = sighting.moment
        state = session.going_on(moment)
        if state is None or self._checked != (moment.track, moment.serial):
            return None
        if state.plan is None or state.guidance.outputs:  # none suits, or that is yet to be seen
            return None
        rows = dispatcher.foresee(state, moment, session.active_plans)
        plan = state.plan
        if rows is None or (program := self._programs.get(plan.form)) is None:
            return None
        if not unchanged():
            return None
        slots = state.slots[moment.branch]
        step = moment.step + state.offset
        tensors = {r: self._row(plan, step, r, row, slots) for r, row in rows.items()}
        outputs = program.forecast(slots, tensors)
        if outputs is None:
            return None
        session.clock.enter(sighting)
        session.state(moment)
        state.recording = None  # a generation with forecasts is no measurement
        stats = session.stats
        stats.calls += 1
        stats.macs_uncached += self._macs
        stats.forecast += 1
        stats.shortcuts += 1
        return outputs

    def _run(self, args: Sequence[Any]) -> Any:
        session = self.session
        session.stats.calls += 1
        session.stats.macs_uncached += self._macs
        moment = self._moment(args)
        self._check_weights(moment, args)
        if not session.enabled:
            return self._full(args)
        if moment is None:
            listed = ", ".join(self._condition_names[1:]) or "none"
            session.stats.fall_back(
                "no timestep",
                "No input tells the time, or its batch stands at several timesteps. The other "
                f"inputs are: {listed}. Name it with options={{'inputs': {{'<name>': "
                "'timestep'}}, or use ditcache.generation. If it was blocks that were compiled "
                "(compile_repeated_blocks), compile the whole denoiser: a step cannot be seen "
                "from one of its blocks.",
            )
            return self._full(args)
        state = session.state(moment)
        slots = state.slots.setdefault(moment.branch, SlotSet())
        if moment.step == 1:
            session.measure_guidance(state, self._integrated(args))
        decision = dispatcher.decide(state, moment, slots, session.plans_for(state))
        if decision.plan is not None and self._refuses(decision.plan):
            return self._full(args, moment, state)
        if decision.reason is not None:
            session.stats.fall_back(decision.reason, decision.detail)
        if decision.plan is None:
            return self._full(args, moment, state)
        return self._planned(args, moment, state, slots, decision)

    # Ways to run -----------------------------------------------------------------------------

    def _full(
        self,
        args: Sequence[Any],
        moment: Moment | None = None,
        state: GenerationState | None = None,
    ) -> Any:
        """Compute everything; hand the regions' outputs to the recording, if there is one."""
        program = self.program(None)
        outputs, values = program.run(program.full, args, None, {})
        self.session.stats.computed += 1
        recording = state.recording if state is not None else None
        if recording is not None and moment is not None:
            recording.add(moment, self._integrated(args), by_region(values, program.region_of))
        return outputs

    def _planned(
        self,
        args: Sequence[Any],
        moment: Moment,
        state: GenerationState,
        slots: SlotSet,
        decision: Decision,
    ) -> Any:
        plan = decision.plan
        assert plan is not None
        program = self.program(plan)
        carried: dict[str, Any] | None = None
        if plan.rule is not None:
            decision, carried = self._ask(program, args, moment, state, slots, decision)
        modes = program.modes(decision.rows)
        if not program.has(modes):
            modes = program.full
        stats = self.session.stats
        if any(modes):
            if state.recording is not None and self.session.replaying:
                state.recording.add(moment, self._integrated(args), {})
            else:
                state.recording = None  # a generation with forecasts is no measurement
            rows = {
                region: self._row(plan, decision.step, region, row, slots)
                for region, row in decision.rows.items()
            }
            outputs, values = program.run(modes, args, slots, rows, carried)
            if not all_finite(outputs):
                state.full = "NaN or infinity in a forecast"
                stats.fall_back(state.full, "The rest of the generation computes in full.")
                return self._full(args, moment, state)
            stats.forecast += 1
        else:
            outputs, values = program.run(modes, args, slots, {}, carried)
            stats.computed += 1
            if state.recording is not None or moment.step == 0:
                latents, found = self._integrated(args), by_region(values, program.region_of)
                if moment.step == 0 and plan.guidance is not None:
                    state.guidance.saw(latents, found.get("denoiser"))
                if state.recording is not None:
                    state.recording.add(moment, latents, found)
        if values:
            self.session.guard.look(state, decision, slots, values, program.region_of)
            if state.sample is None:
                decision = self._suited(moment, state, decision, outputs)
            if decision.plan is not None:
                self._keep(moment, state, slots, decision, values)
        return outputs

    def _ask(  # noqa: PLR0917
        self,
        program: Program,
        args: Sequence[Any],
        moment: Moment,
        state: GenerationState,
        slots: SlotSet,
        decision: Decision,
    ) -> tuple[Decision, dict[str, Any] | None]:
        """Let the plan's rule decide about a step that the plan leaves open.

        Gives the decision and what the program's head computed; nothing where the plan decided.
        """
        plan = decision.plan
        assert plan is not None
        judge = state.judges.get(moment.branch)
        if judge is None or judge.plan is not plan:
            judge = state.judges[moment.branch] = Judge(plan)
        if not decision.rows or not program.has_references(slots):
            return replace(decision, rows={}), None
        probes, carried = program.head(args, slots)
        if not judge.skips(decision.step, probes):
            return replace(decision, rows={}), carried
        rows = {
            name: judge.row(row, ring, moment.step)
            for name, row in decision.rows.items()
            if (ring := slots.of(name)) is not None
        }
        return replace(decision, rows=rows), carried

    def _suited(
        self, moment: Moment, state: GenerationState, decision: Decision, outputs: Any
    ) -> Decision:
        """The decision once the output's shape is seen: perhaps another plan's, or none's."""
        state.sample = sample(outputs, self._denoised)
        if state.sample is None or decision.plan is None or state.sample.suits(decision.plan):
            return decision
        state.plan = None  # there may be one for this shape on the same grid
        decision = dispatcher.decide(state, moment, None, self.session.plans_for(state))
        if decision.plan is None:
            self.session.stats.fall_back(decision.reason or "", decision.detail)
        elif self._refuses(decision.plan):
            return replace(decision, plan=None)
        return decision

    def _keep(
        self,
        moment: Moment,
        state: GenerationState,
        slots: SlotSet,
        decision: Decision,
        values: dict[str, Tensor],
    ) -> None:
        """Write the computed values of planned steps into their slots.

        A step that computes against the plan leaves the slots as they are: the rows that follow
        were solved for the planned history.
        """
        plan = decision.plan
        assert plan is not None
        program = self.program(plan)
        planned = {s.region for s in plan.regions if decision.step in s.computed}
        if plan.rule is not None:  # whatever was computed counts
            planned = set(program.region_of.values())
            judge = state.judges.get(moment.branch)
            if judge is not None and not decision.rows:
                moved = {n: v for n, v in values.items() if n in program.measured}
                judge.computed(decision.step, moved, slots)
        for slot, value in values.items():
            owner = program.region_of.get(slot)
            if owner not in planned:
                continue
            try:
                slots.push(slot, moment.step, value, program.histories[slot], owner)
            except torch.OutOfMemoryError:
                slots.rings.clear()
                state.full = "no memory for slots"
                self.session.stats.fall_back(state.full)
                return

    # Parts -----------------------------------------------------------------------------------

    def program(self, plan: Plan | None) -> Program:
        """The program for a plan, made on first use; raises PassError if the plan does not fit."""
        key = None if plan is None else plan.form
        known = self._programs.get(key)
        if known is not None:
            return known
        # Passes work on fake tensors, which two threads cannot use at once.
        with compile_lock:
            made = self._programs.get(key)  # another thread was faster
            if made is None:
                made = self._programs[key] = self._specialised(plan)
        return made

    def _specialised(self, plan: Plan | None) -> Program:
        """The step graph rewritten under a plan, not lowered yet."""
        config = self.session.config
        record = () if plan is not None else self.session.record_kinds
        ctx = PassContext(
            roles=config.inputs, plan=plan, record=record, slot_budget=config.slot_budget
        )
        started = self.graph
        done, _ = pipeline.run(started, pipeline.REWRITE, ctx, check="fast")
        budget = 0 if config.policy == "none" else config.hoist_budget
        return Program(done, self._names, config.inner, budget, self.session.stats)

    def forget_programs(self) -> None:
        """Drop all programs, e.g. because other regions are to be recorded."""
        self._programs.clear()
        self._refused.clear()
        self._rows.clear()

    def _refuses(self, plan: Plan) -> bool:
        """Whether a plan does not fit this graph; counted at every call, tried once."""
        known = self._refused.get(id(plan))
        if known is None:
            try:
                self.program(plan)
                return False
            except PassError as refused:
                known = self._refused[id(plan)] = (plan, str(refused))
            except VerifyError as broken:
                known = self._refused[id(plan)] = (plan, f"Internal error, please report: {broken}")
        self.session.stats.fall_back("the plan does not fit this graph", known[1])
        return True

    def _check_weights(self, moment: Moment | None, args: Sequence[Any]) -> None:
        """Once in a generation: weights written to through `.data` count no version."""
        now = None if moment is None else (moment.track, moment.serial)
        if moment is not None and moment.starts and self.session.watches_weights:
            self.session.weights_are(self.weights.of(args), moment.track)
        if now is None or now != self._checked:
            for program in self._programs.values():
                program.revalidate()
            self._checked = now

    def _moment(self, args: Sequence[Any]) -> Moment | None:
        timestep = read_timestep(args[self._timestep]) if self._timestep is not None else None
        latents = self._integrated(args)
        conditions = [self._identity, *[args[i] for i in self._conditions]]
        return self.session.clock.tick(timestep, latents, conditions, self._condition_names)

    def _integrated(self, args: Sequence[Any]) -> Tensor | None:
        """The latents of a call; a list of them (one tensor a sample) counts as one vector."""
        if len(self._latents) == 1:
            return args[self._latents[0]]
        parts = [args[i].reshape(-1) for i in self._latents]
        return torch.cat(parts) if parts else None

    def _row(
        self, plan: Plan, step: int, region: str, row: tuple[float, ...], slots: SlotSet
    ) -> Tensor:
        """The row as a tensor in the ring's physical order, made once for each rotation."""
        ring = slots.of(region)
        assert ring is not None  # the dispatcher has seen its history
        known = self._rows.get(id(plan))
        if known is None or known[0] is not plan:  # held, so that no other plan gets its id
            while len(self._rows) >= PLANS_HELD:
                del self._rows[next(iter(self._rows))]
            known = self._rows[id(plan)] = (plan, {})
        key = (region, step, ring.rotation)
        # Under a rule the row depends on which steps happened to compute.
        made = known[1].get(key) if plan.rule is None else None
        if made is None or made.device != ring.buffer.device:
            weights = torch.tensor(ring.physical(row), dtype=torch.float32)
            made = known[1][key] = weights.to(ring.buffer.device)
        return made

    def _hoisted_bytes(self) -> int:
        return sum(program.hoisted_bytes for program in self._programs.values())


def analyse(graph: StepGraph, config: Config) -> StepGraph:
    """Run the analysis half of the pipeline; raises PassError if the graph cannot be cached."""
    done, _ = pipeline.run(graph, pipeline.ANALYSIS, PassContext(roles=config.inputs), check="fast")
    return done
