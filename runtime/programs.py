"""The programs of one step graph: analysed once, then rewritten and lowered for each plan."""

from __future__ import annotations

from collections.abc import Hashable

from ..passes import pipeline
from ..passes.base import PassContext, PassError
from ..passes.ir import StepGraph, placeholders
from ..passes.plan_format import Plan
from ..passes.verifier import VerifyError
from . import if_node
from .config import Config
from .cuda_graphs import Graphs
from .dynamo import compile_lock
from .program import Program
from .stats import Stats


def analyse(graph: StepGraph, config: Config) -> StepGraph:
    """Run the analysis half of the pipeline; raises PassError if the graph cannot be cached."""
    done, _ = pipeline.run(graph, pipeline.ANALYSIS, PassContext(roles=config.inputs), check="fast")
    return done


class Programs:
    """One program for each form of plan in use, and one without a plan; each made on first use.

    `graph` is the analysed step; variants are captured into `graphs`, if given. Plans that differ
    in weights alone share a program.
    """

    def __init__(self, graph: StepGraph, graphs: Graphs | None = None) -> None:
        self._graph = graph
        self._graphs = graphs
        self._names = [n.name for n in placeholders(graph.graph)]
        self._made: dict[Hashable, Program] = {}
        self._refused: dict[int, tuple[Plan, str]] = {}

    def __len__(self) -> int:
        return len(self._made)

    @property
    def hoisted_bytes(self) -> int:
        """Bytes of remembered prologue results."""
        return sum(program.hoisted_bytes for program in self._made.values())

    def known(self, plan: Plan) -> Program | None:
        """The program for a plan if there is one already."""
        return self._made.get(plan.form)

    def get(
        self, plan: Plan | None, config: Config, record: tuple[str, ...], stats: Stats
    ) -> Program:
        """The program for a plan; raises PassError if the plan does not fit.

        Without a plan it computes everything and hands out the regions of the kinds to `record`.
        """
        key = None if plan is None else plan.form
        known = self._made.get(key)
        if known is not None:
            return known
        # Passes work on fake tensors, which two threads cannot use at once.
        with compile_lock:
            made = self._made.get(key)  # another thread was faster
            if made is None:
                made = self._made[key] = self._specialised(plan, config, record, stats)
        return made

    def _specialised(
        self, plan: Plan | None, config: Config, record: tuple[str, ...], stats: Stats
    ) -> Program:
        """The step graph rewritten under a plan, not lowered yet."""
        unable = None if self._graphs is None else if_node.missing()
        if unable is not None and config.device_decisions and plan is not None and plan.rule:
            stats.say("if node", unable)
        ctx = PassContext(
            roles=config.inputs,
            plan=plan,
            record=record if plan is None else (),
            slot_budget=config.slot_budget,
            slot_format=config.slot_format,
            on_device=config.device_decisions and unable is None,
            guarded=self._graphs is not None and config.guard == "compute" and unable is None,
        )
        done, _ = pipeline.run(self._graph, pipeline.REWRITE, ctx, check="fast")
        budget = 0 if config.policy == "none" else config.hoist_budget
        return Program(done, self._names, config.inner, budget, stats, graphs=self._graphs)

    def refusal(self, plan: Plan, config: Config, stats: Stats) -> str | None:
        """Why a plan does not fit this graph, None if it does; tried once."""
        known = self._refused.get(id(plan))
        if known is None:
            try:
                self.get(plan, config, (), stats)
                return None
            except PassError as refused:
                known = self._refused[id(plan)] = (plan, str(refused))
            except VerifyError as broken:
                known = self._refused[id(plan)] = (plan, f"Internal error, please report: {broken}")
        return known[1]

    def revalidate(self) -> None:
        """Drop hoisted values whose weights changed unseen."""
        for program in self._made.values():
            program.revalidate()

    def release(self) -> None:
        """Free what programs hold besides their code: hoisted values and captures."""
        if self._graphs is not None:
            self._graphs.clear()
        for program in self._made.values():
            program.release()

    def clear(self) -> None:
        """Drop all programs, and what is known of plans that do not fit."""
        if self._graphs is not None:
            self._graphs.clear()
        self._made.clear()
        self._refused.clear()
