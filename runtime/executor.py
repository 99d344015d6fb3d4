"""The executor: the callable that Dynamo runs in place of the step graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..passes.ir import StepGraph
from ..passes.plan_format import Plan
from . import dispatcher, stepped
from .config import Config
from .generation_state import Step
from .op_by_op import watched
from .program import Program
from .programs import Programs
from .session import Session
from .slots import SlotSet
from .step_inputs import StepInputs
from .track import Moment
from .ways import Ways
from .weights import WeightMark


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an executor: the graph's inputs and outputs."""

    executor: StepExecutor
    inputs: Sequence[Any]
    outputs: Any


Compiled = Callable[..., Any]

# Where the calls of this thread or task are noted, for who wants to know.
observer: ContextVar[list[Call] | None] = ContextVar("ditcache_observer", default=None)


class StepExecutor:
    """Runs one compiled step: asks the clock when it is, the dispatcher what to do, `Ways` does it.

    `graph` is the analysed step (passes up to tag-stability). A program is specialised and
    lowered from it for each plan in use, and one without a plan, whose denoiser output is written
    out for recording. `config` are the options that the graph was compiled with: a model may be
    compiled again with others. `pure`: running the graph is all that a call of the model does.
    `whole` is the graph as Dynamo captured it, compiled in one piece: what runs, if given, while
    there is neither a plan nor a recording.
    """

    def __init__(
        self,
        graph: StepGraph,
        session: Session,
        *,
        config: Config | None = None,
        pure: bool = False,
        whole: Compiled | None = None,
    ) -> None:
        self.graph = graph
        self.config = config or session.config
        self.pure = pure
        self.whole = whole
        self.session = session
        self._inputs = StepInputs(graph)
        self.weights = WeightMark(graph.graph)
        self.captured = session.captured
        self._programs = Programs(graph, self.captured)
        self._ways = Ways(graph, session, self._inputs, self.program, self._refuses)
        self._checked: tuple[Any, int] | None = None  # the generation that weights were checked in
        self._macs = graph.region("denoiser").macs if graph.regions else 0
        self._macs += self.program(None).hoisted_macs

    @property
    def macs(self) -> int:
        """MACs of one uncached call at the traced shape."""
        return self._macs

    @property
    def hoisted_bytes(self) -> int:
        """Bytes of remembered prologue results."""
        return self._programs.hoisted_bytes

    @property
    def watched(self) -> set[int | None]:
        """Indices of the inputs that a forecast reads."""
        return self._inputs.watched

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
        if not session.enabled or session.replaying:
            return None
        session.late.look()
        sighting = self._inputs.look(args, session.clock)
        if sighting is None:
            return None
        moment = sighting.moment
        state = session.generations.going_on(moment)
        if state is None or self._checked != (moment.track, moment.serial):
            return None
        if state.plan is None or state.guidance.outputs:  # none suits, or that is yet to be seen
            return None
        if not state.confirmed and len(session.late):
            return None
        rows = dispatcher.foresee(state, moment, session.active_plans)
        plan = state.plan
        if rows is None or (program := self._programs.known(plan)) is None:
            return None
        if moment.step == 1 and stepped.comes_back(state, sighting.latents):
            return None
        if self._ways.guarded(args) is not None or not unchanged():
            return None
        slots = state.slots[moment.branch]
        step = moment.step + state.offset
        row_tensors = self._ways.rows.of_step(plan, step, rows, slots)
        outputs = program.forecast(slots, row_tensors, lambda made: self._ways.sound(made, state))
        if outputs is None:
            return None
        session.clock.enter(sighting)
        session.clock.gave(moment, self._ways.given(outputs))
        session.generations.state(moment)
        state.recording = None  # a generation with forecasts is no measurement
        stats = session.stats
        stats.calls += 1
        stats.macs_uncached += self._macs
        stats.forecast += 1
        stats.shortcuts += 1
        return outputs

    def _run(self, args: Sequence[Any]) -> Any:
        session = self.session
        if self.whole is not None and session.idle and not watched():
            return self._as_captured(self.whole, args)
        session.late.look()
        session.stats.calls += 1
        session.stats.macs_uncached += self._macs
        moment = self._inputs.moment(args, session.clock)
        self._check_weights(moment, args)
        if not session.enabled:
            return self._ways.full(args)
        if moment is None:
            if session.stats.calls == 1:
                # A number is a constant to Dynamo until it has changed: the next call may tell.
                session.stats.fallbacks["no timestep"] += 1
                return self._ways.full(args)
            listed = ", ".join(self._inputs.steering) or "none"
            session.stats.fall_back(
                "no timestep",
                "No input tells the time, or its batch stands at several timesteps. The other "
                f"inputs are: {listed}. Name it with options={{'inputs': {{'<name>': "
                "'timestep'}}, or use ditcache.generation. A Python number may be a constant of "
                "the graph: pass it as a tensor. If it was blocks that were compiled "
                "(compile_repeated_blocks), compile the whole denoiser: a step cannot be seen "
                "from one of its blocks.",
            )
            return self._ways.full(args)
        outputs = self._step(args, moment)
        session.clock.gave(moment, self._ways.given(outputs))
        return outputs

    def _step(self, args: Sequence[Any], moment: Moment) -> Any:
        """The call that stands at this moment, computed or forecast."""
        session = self.session
        state = session.generations.state(moment)
        slots = state.slots.setdefault(moment.branch, SlotSet())
        if moment.step == 1:
            latents = self._inputs.latents(args)
            session.measure_guidance(state, latents)
            if state.full is None and stepped.comes_back(state, latents):
                stepped.give_up(state, session.stats)
        decision = dispatcher.decide(state, moment, slots, session.plans_for(state))
        if decision.rows and not state.confirmed:
            # Once a generation the host waits for the device: what it took the steps for must hold.
            session.late.settle()
            state.confirmed = True
            decision = dispatcher.decide(state, moment, slots, session.plans_for(state))
        if state.plan is not None and len(state.seen) > 1 and self._inputs.wait(args):
            session.clock.announce(moment, state.plan.timesteps[state.offset :])
        step = Step(args, moment, state, slots)
        if decision.plan is not None and self._refuses(decision.plan):
            return self._ways.full(args, step)
        if decision.reason is not None:
            session.stats.fall_back(decision.reason, decision.detail)
        if decision.plan is None:
            return self._ways.full(args, step)
        return self._ways.planned(step, decision)

    def _as_captured(self, whole: Compiled, args: Sequence[Any]) -> Any:
        """Run what the inner compiler made of the graph; the clock need not know of this call."""
        stats = self.session.stats
        stats.calls += 1
        stats.computed += 1
        stats.macs += self._macs
        stats.macs_uncached += self._macs
        return whole(*args)

    # Parts -----------------------------------------------------------------------------------

    def program(self, plan: Plan | None) -> Program:
        """The program for a plan, made on first use; raises PassError if the plan does not fit."""
        session = self.session
        return self._programs.get(plan, self.config, session.record_kinds, session.stats)

    def fits(self, plan: Plan) -> bool:
        """Whether a program can be made for the plan; nothing is counted or said."""
        return self._programs.refusal(plan, self.session.config, self.session.stats) is None

    def forget_programs(self) -> None:
        """Drop all programs, e.g. because other regions are to be recorded."""
        self._programs.clear()
        self._ways.rows.clear()

    def release(self) -> None:
        """Free hoisted values and captures; they are made again where they are needed."""
        self._programs.release()

    def _refuses(self, plan: Plan) -> bool:
        """Whether a plan does not fit this graph; counted at every call, tried once."""
        why = self._programs.refusal(plan, self.config, self.session.stats)
        if why is not None:
            self.session.stats.fall_back("the plan does not fit this graph", why)
        return why is not None

    def _check_weights(self, moment: Moment | None, args: Sequence[Any]) -> None:
        """Once in a generation: weights written to through `.data` count no version."""
        now = None if moment is None else (moment.track, moment.serial)
        if moment is not None and moment.starts and self.session.watches_weights:
            self.session.weights_are(self.weights.of(args), moment.track)
        if now is None or now != self._checked:
            self._programs.revalidate()
            self._checked = now
