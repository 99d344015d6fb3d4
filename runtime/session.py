"""A session: everything that ditcache knows about one model at run time, across its graphs."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..passes.outline import Outline
from ..passes.plan_format import Plan, PlanError
from ..passes.selectors import outline
from .clock import Clock
from .config import Config
from .cuda_graph_api import graphs_for
from .generation_state import GenerationState
from .generations import Generations
from .guard import Guard
from .guidance_watch import suits
from .if_node import missing
from .late_reads import waits
from .offload import offload_for
from .recorder import SKETCH_WIDTH, Recording
from .registry import registry
from .self_profiling import SelfProfiler
from .stats import Stats
from .store import PlanStore
from .weights import OTHER_WEIGHTS

if TYPE_CHECKING:
    from .executor import StepExecutor


class Session:
    """Plans, clock, slots, recordings and statistics of one model.

    Several compiled graphs share it (one per shape that Dynamo meets): the state of a generation
    belongs to (generation, branch), whichever graph a call lands in.
    """

    def __init__(self, config: Config) -> None:
        self.stats = Stats()  # one for good: compiled graphs count into it
        self.record_kinds: tuple[str, ...] = config.records
        self.sketch_width = SKETCH_WIDTH
        self.collected: list[Recording] | None = None  # not None while calibrating
        self.replaying = False  # calibrating under a plan
        # Of each compiled graph, for as long as Dynamo holds its code.
        self._executors: weakref.WeakKeyDictionary[object, StepExecutor] = (
            weakref.WeakKeyDictionary()
        )
        self._given: list[weakref.ref[object]] = []  # the calls of torch.compile for this model
        self._start(config)

    def _start(self, config: Config) -> None:
        """Begin with these options, knowing nothing of the model yet."""
        self.config = config
        self.enabled = True
        self.clock = Clock()
        self.late = self.clock.late
        self.plans: list[Plan] = [] if config.plan is None else [config.plan]
        self.signature: str | None = None
        self.graphs = 0
        self.uncached: list[str] = []
        self.macs = 0
        self.captured = graphs_for(config, self.stats)
        on_device = self.captured is not None and missing() is None
        self.guard = Guard(config.guard, self.stats, self.late, on_device)
        self._profiler = SelfProfiler(config, self.stats)
        self.generations = Generations(self)
        self.offload = offload_for(config, lambda: self.generations.slot_bytes)
        self._weights = ""  # the mark of those in use
        self._plans_of: dict[str, list[Plan]] = {}  # of weights in use before, by their mark

    # Graphs -----------------------------------------------------------------------------------

    @property
    def executors(self) -> list[StepExecutor]:
        """The model's compiled graphs that can still be called, the oldest first."""
        return list(self._executors.values())

    @property
    def graph_bytes(self) -> int:
        """Bytes held by CUDA graphs, also by those of graphs compiled with options before."""
        held = {self.captured, *(executor.captured for executor in self.executors)}
        return sum(graphs.nbytes for graphs in held if graphs is not None)

    def bind(self, code: object, executor: StepExecutor, signature: str, weights: str) -> None:
        """Take in a compiled graph of the model; the first one tells which model it is.

        `code` is what Dynamo calls, held weakly. `signature` is the architecture's, `weights` the
        mark of the weights in use. Loads the plans that were remembered for them.
        """
        self._executors[code] = executor
        self.graphs += 1
        self.macs = max(self.macs, executor.macs)
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
        with self.generations.lock:
            if mark == self._weights or self.signature is None:
                return
            if (state := self.generations.of_track(track)) is not None:
                self.finish(state)  # what it recorded is of the weights before
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
    def idle(self) -> bool:
        """Whether there is neither a plan to follow nor anything to record."""
        recording = self.collected is not None or self.self_profiling or self.guard.wanted
        return not (self.plans or recording)

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

    def begins(self, state: GenerationState) -> None:
        """A generation begins: give it a recording, if its outputs are wanted."""
        if self.collected is not None or self.self_profiling or self.guard.wanted is not None:
            state.recording = Recording(self.sketch_width)
            state.measured = self.collected is None and self._measures()

    def finish(self, state: GenerationState) -> None:
        """A generation is over: its recording counts."""
        self._profiler.planned += state.plan is not None
        if state.outran is not None:
            self._profiler.give_up(state.outran, self.plans)
        recording, state.recording = state.recording, None
        if recording is None or not recording.seen:
            return
        self.stats.recorded += 1
        if self.collected is not None:
            self.collected.append(recording)
        elif recording.broken is not None or len(recording.timesteps) == 1:
            return  # one call is no generation, and what makes it look so is said elsewhere
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

    def configure(self, config: Config, *, by: object | None = None) -> None:
        """Take options given at compile time; other options than before start afresh.

        What was compiled before keeps its inner compiler and its budgets, but not the memory that
        it held; plans and recordings are the model's, and follow the options that were given last.
        A calibration under way goes on. `by` stands for the call of torch.compile: when that
        compiles another shape, its options are none that are given anew.
        """
        if by is not None:
            if any(known() is by for known in self._given):
                return
            self._given = [known for known in self._given if known() is not None]
            self._given.append(weakref.ref(by))
        if config == self.config:
            return
        applied = self.plans if config.plan is None and not self.graphs else []
        self.stats.reset()
        self.stats.said.clear()
        self._start(config)
        self.plans = applied or self.plans
        for executor in self.executors:
            executor.release()
        if self.collected is None:
            self.record(config.records)


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
        session.generations.leave()
