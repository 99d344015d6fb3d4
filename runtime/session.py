"""A session: everything that ditcache knows about one model at run time, across its graphs."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..passes.outline import Outline
from ..passes.plan_format import Plan, PlanError
from ..passes.selectors import outline
from . import scope
from .clock import CLASH, MAX_TRACKS, OTHER_LATENTS, TAKING_TURNS, TOO_MANY_CALLS, Clock
from .config import Config
from .cuda_graph_api import graphs_for
from .dispatcher import GenerationState
from .foresight import LOST
from .guard import Guard
from .guidance_watch import suits
from .late_reads import waits
from .recorder import SKETCH_WIDTH, Recording
from .registry import registry
from .self_profiling import SelfProfiler, is_whole
from .slots import SlotSet
from .stats import Stats, Summary
from .store import PlanStore
from .track import Moment
from .weights import OTHER_WEIGHTS

if TYPE_CHECKING:
    from .executor import StepExecutor


class Session:
    """Plans, clock, slots, recordings and statistics of one model.

    Several compiled graphs share it (one per shape that Dynamo meets): the state of a generation
    belongs to (generation, branch), whichever graph a call lands in.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.enabled = True
        self.clock = Clock()
        self.clock.lost = self._lost
        self.late = self.clock.late
        self.stats = Stats()
        self.plans: list[Plan] = []
        self.signature: str | None = None
        self.graphs = 0
        self.uncached: list[str] = []
        self.record_kinds: tuple[str, ...] = config.records
        self.sketch_width = SKETCH_WIDTH
        self.collected: list[Recording] | None = None  # not None while calibrating
        self.replaying = False  # calibrating under a plan
        self.macs = 0
        self.executors: list[StepExecutor] = []
        self.hoisted_bytes: list[Callable[[], int]] = []
        self.guard = Guard(config.guard, self.stats, self.late)
        self.captured = graphs_for(config, self.stats)
        self._profiler = SelfProfiler(config, self.stats)
        self._lock = threading.RLock()
        self._states: OrderedDict[Hashable, GenerationState] = OrderedDict()
        self._weights = ""  # the mark of those in use
        self._plans_of: dict[str, list[Plan]] = {}  # of weights in use before, by their mark
        if config.plan is not None:
            self.plans = [config.plan]

    # Graphs -----------------------------------------------------------------------------------

    def bind(self, signature: str, weights: str, macs: int) -> None:
        """Tell the session which model it is for; loads remembered plans."""
        self.graphs += 1
        self.macs = max(self.macs, macs)
        if self.signature is not None:
            return
        self.signature, self._weights = signature, weights
        self.plans = [p for p in self.plans if self._is_ours(p)]
        self._profiler.signature, self._profiler.macs = signature, self.macs
        self._profiler.outline = lambda: self.outline
        if self.config.profiles_itself and self.config.remember and not self.plans:
            self._profiler.store = PlanStore(self.config, signature, weights)
            self.plans = self._profiler.load(weights)
            _at_exit.add(self)

    @property
    def watches_weights(self) -> bool:
        """Whether it matters that the weights are others than before."""
        return self.enabled and (bool(self.plans) or self.self_profiling)

    def weights_are(self, mark: str, track: Hashable) -> None:
        """Take note of the weights with which a generation of this track begins.

        A plan goes on with other weights of the model: it holds weights over steps, not of the
        model. Only with an error bound is it put by, and other weights are recorded anew.
        """
        with self._lock:
            if mark == self._weights or self.signature is None:
                return
            if (state := self._states.get(track)) is not None:
                self._finish(state)  # what it recorded is of the weights before
            before, self._weights = self._weights, mark
            if self._profiler.store is not None:
                self._profiler.store = PlanStore(self.config, self.signature, mark)
            if self.config.max_error is not None and self.config.profiles_itself:
                self._plans_of[before] = self.plans
                self.plans = self._plans_of.pop(mark, [])
                if not self.plans:
                    self.plans = self._profiler.load(mark)
            elif self.plans:
                self.stats.say("weights", f"the plan is kept, {OTHER_WEIGHTS}")

    def _is_ours(self, plan: Plan) -> bool:
        if self.signature is None or plan.signature == self.signature:
            return True
        self.stats.fall_back(
            "a plan for another model",
            f"The plan's signature is {plan.signature}, this model's {self.signature}; "
            "calibrate this model.",
        )
        return False

    def adopt(self, plan: Plan) -> None:
        """Use this plan from now on; raises PlanError if it is for another model."""
        if self.signature is not None and plan.signature != self.signature:
            raise PlanError(
                f"the plan is for model {plan.signature}, this model is {self.signature}; "
                "make one from a profile of this model (ditcache.calibrate)"
            )
        self.plans = [plan]
        self.guard.wanted = None
        self.enabled = True
        self.clock.restart()

    # Generations ------------------------------------------------------------------------------

    @property
    def self_profiling(self) -> bool:
        """Whether recordings of this session turn into plans by themselves."""
        return self.enabled and self.config.profiles_itself and self.collected is None

    @property
    def outline(self) -> Outline | None:
        """Which regions the model has; None before it was compiled."""
        return outline(self.executors[0].graph) if self.executors else None

    @property
    def active_plans(self) -> list[Plan]:
        """The plans to run under: none while calibrating, unless it is to measure a plan."""
        return self.plans if self.collected is None or self.replaying else []

    def record(self, kinds: tuple[str, ...]) -> None:
        """From now on record regions of these kinds."""
        if kinds != self.record_kinds:
            self.record_kinds = kinds
            for executor in self.executors:
                executor.forget_programs()

    def plans_for(self, state: GenerationState) -> list[Plan]:
        """The plans that suit what is known of a generation's guidance, the nearest scale first."""
        scale = state.guidance.scale
        plans = [] if state.measured else self.active_plans
        if scale is None or not plans:
            return plans
        fit = [plan for plan in plans if suits(plan, scale)]
        if not fit:
            self.stats.fall_back(
                "another guidance scale",
                f"The plan was made at guidance {plans[0].guidance:.3g}, this generation runs at "
                f"{scale:.3g}: calibrate there, or give profile.plan guidance={scale:.3g}.",
            )
        return sorted(fit, key=lambda p: abs((p.guidance or scale) - scale))

    def measure_guidance(self, state: GenerationState, latents: Tensor | None) -> None:
        """At a generation's second step: find its guidance scale, give up a plan for another."""
        if not state.guidance.outputs:
            return
        second = state.guidance.second(
            latents, None if state.sample is None else state.sample.shape
        )

        def fit(second: Tensor) -> None:
            scale = state.guidance.fit(second)
            if scale is not None and state.plan is not None and not suits(state.plan, scale):
                state.plan = None

        if second is not None and waits(second):
            self.late.read(second, fit)
        elif second is not None:
            fit(second)

    def _lost(self, moment: Moment, why: str) -> None:
        """A step that was foreseen was another: the rest of its generation computes in full."""
        state = self._states.get(moment.track)
        if state is not None and state.serial == moment.serial:
            state.full = LOST
        self.stats.say(
            LOST,
            f"{LOST}: {why}. The rest of the generation is computed in full, and from now on each "
            "step is read at once, which waits for the device. Name guidance branches with "
            "ditcache.branch, and put each sampling loop into ditcache.generation().",
        )

    def state(self, moment: Moment) -> GenerationState:
        """The generation that a moment belongs to; begins a new one where the clock says so."""
        with self._lock:
            state = self._states.get(moment.track)
            if state is None or state.serial != moment.serial:
                state = self._begin(moment, state)
            self._states.move_to_end(moment.track)
            while len(self._states) > MAX_TRACKS:
                self._finish(self._states.popitem(last=False)[1])
            if moment.step == len(state.seen):
                state.seen.append(moment.timestep)
        return state

    def going_on(self, moment: Moment) -> GenerationState | None:
        """The generation of a moment that is not entered yet, if it does not begin with it."""
        with self._lock:
            state = self._states.get(moment.track)
        return None if moment.cause or state is None or state.serial != moment.serial else state

    def _begin(self, moment: Moment, before: GenerationState | None) -> GenerationState:
        kept: dict[str, SlotSet] = {}
        if before is not None:
            if moment.cause == TOO_MANY_CALLS and before.recording is not None:
                before.recording.broken = f"{TOO_MANY_CALLS} in one ditcache.generation"
            elif len(before.seen) == 1 and before.short:
                self.stats.say("one step", _one_step(moment))
            if moment.cause == CLASH and before.recording is not None:
                before.recording.broken = CLASH
            self._finish(before)
            kept = before.slots
            for slots in kept.values():
                slots.clear()
        state = GenerationState(moment.serial, slots=kept)
        state.short = before is not None and len(before.seen) == 1
        if moment.cause in (CLASH, OTHER_LATENTS):
            state.clashes = 1 + (before.clashes if before is not None else 0)
        if moment.cause in (TOO_MANY_CALLS, LOST):
            state.full = moment.cause
        elif state.clashes > 1:
            # Latents that take turns: generations interleaved on one thread. Near their end two
            # images of one prompt may look related, so that the clock alone is not to be trusted.
            state.full = "interleaved generations"
            self.stats.say(state.full, f"computing in full: {TAKING_TURNS}")
        elif moment.step > 0:
            state.full = "joined in mid-generation"  # its beginning was given up for other tracks
        elif self.collected is not None or self.self_profiling or self.guard.wanted is not None:
            state.recording = Recording(self.sketch_width)
            state.measured = self.collected is None and self._measures()
        self._states[moment.track] = state
        self.stats.generations += 1
        if isinstance(moment.track, scope.GenerationScope):
            moment.track.on_close(self, self.end)
        return state

    def end(self, track: Hashable) -> None:
        """Close a track's generation: its recording counts, its slots are freed."""
        with self._lock:
            state = self._states.pop(track, None)
            self.clock.forget(track)
            if state is not None:
                self._finish(state)

    def end_all(self) -> None:
        """Close every open generation."""
        for track in list(self._states):
            self.end(track)

    def _finish(self, state: GenerationState) -> None:
        self._profiler.planned += state.plan is not None
        recording, state.recording = state.recording, None
        if recording is None or not recording.seen:
            return
        self.stats.recorded += 1
        if self.collected is not None:
            self.collected.append(recording)
        elif recording.broken is not None:
            return
        elif (again := self.guard.wanted) is not None:
            if self._profiler.take(recording, self.plans, self._weights, again):
                self.guard.made_anew()
        elif self.self_profiling:
            self._profiler.take(recording, self.plans, self._weights)

    def _measures(self) -> bool:
        """Whether the generation that begins runs in full, although there may be a plan."""
        if self.guard.wanted is not None:
            return True
        return self.self_profiling and bool(self.plans) and self._profiler.due()

    def leave(self) -> None:
        """The process ends: a last generation that ran to its end counts too."""
        for state in list(self._states.values()):
            if state.recording is not None and is_whole(state.seen):
                self._finish(state)
        self._states.clear()

    # Reports ----------------------------------------------------------------------------------

    def summary(self) -> Summary:
        """A snapshot of plans and counters; waits for what is still to be read of a device."""
        self.late.settle()
        stats = self.stats
        plan = self.plans[-1] if self.plans else None
        text = "none"
        if plan is not None:
            first = plan.regions[0]
            error = (
                "" if plan.expected_error is None else f", expected error {plan.expected_error:.2g}"
            )
            text = (
                f"{plan.computed_steps} of {len(plan.timesteps)} steps, {first.forecaster}{error}"
            )
            if plan.rule is not None:
                text = f"at least {text}, the rest by {plan.rule.policy}"
        elif self.self_profiling:
            text = f"recording {self.config.recordings} generations first"
        return Summary(
            policy=self.config.policy if self.enabled else "removed",
            plan=text,
            graphs=self.graphs,
            generations=stats.generations,
            calls=stats.calls,
            computed=stats.computed,
            forecast=stats.forecast,
            recorded=stats.recorded,
            macs=stats.macs,
            macs_uncached=stats.macs_uncached,
            slot_bytes=sum(s.nbytes for g in self._states.values() for s in g.slots.values()),
            hoisted_bytes=sum(size() for size in self.hoisted_bytes),
            hoist_hits=dict(stats.hoist_hits),
            hoist_runs=dict(stats.hoist_runs),
            fallbacks=dict(stats.fallbacks),
            uncached=tuple(self.uncached),
            lower_seconds=stats.lower_seconds,
            plan_seconds=stats.plan_seconds,
            guard=stats.guard_text(self.guard.action),
            shortcuts=stats.shortcuts,
            captures=stats.captures,
            replays=stats.replays,
            graph_bytes=0 if self.captured is None else self.captured.nbytes,
            uncaptured=dict(stats.uncaptured),
            slot_format=self.config.slot_format,
        )

    def configure(self, config: Config) -> None:
        """Take options given at compile time; other options than before start afresh."""
        if config == self.config:
            return
        keep = self.plans if config.plan is None and not self.graphs else []
        collected, kinds, width = self.collected, self.record_kinds, self.sketch_width
        self.__init__(config)
        self.plans = keep or self.plans
        self.collected, self.sketch_width = collected, width
        self.record_kinds = kinds if collected is not None else config.records


def _one_step(moment: Moment) -> str:
    """What to say where every call of the model looks like a generation of its own."""
    text = f"two generations of one step each, ended by: {moment.cause}. Nothing is forecast then. "
    if moment.changed in ("", "graph", "number of inputs"):
        return text + (
            "If your sampler takes more steps than one, its calls do not look like its steps."
        )
    name = [p for p in moment.changed.split(".") if not p.isdigit()][-1]
    return text + (
        f"The input {moment.changed!r} changes at every call. If it follows the latents (the last "
        f"prediction, a noisy mask), say options={{'inputs': {{{name!r}: 'latents'}}}}; if it "
        f"tells the time, {{{name!r}: 'timestep'}}."
    )


def session_of(model: torch.nn.Module, *, create: bool = False) -> Session | None:
    """The session of a model (compiled or not), made with default options if asked to."""
    tensors = [*model.parameters(), *model.buffers()]
    found = registry.find(tensors)
    if found is None and create:
        found = Session(Config())
        registry.register(tensors, found)
    return found


_at_exit: weakref.WeakSet[Session] = weakref.WeakSet()


@atexit.register
def _leave() -> None:
    for session in list(_at_exit):
        session.leave()
