"""The pipeline: which passes run, in which order and why, and the one place that calls them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .base import Pass, PassContext, PassError, PassResult, Stats
from .classify_inputs import ClassifyInputs
from .cleanup import Cleanup
from .dependence import Dependence
from .form_regions import FormRegions
from .hoist_invariant import HoistInvariant
from .insert_cache import InsertCache
from .ir import StepGraph
from .lower_cond import LowerCond
from .normalize import Normalize
from .plan_steps import PlanSteps
from .specialize import Specialize
from .tag_stability import TagStability
from .verifier import verify

ANALYSIS: tuple[Pass, ...] = (
    Normalize(),  # first: all others rely on a functional graph and stable names
    ClassifyInputs(),  # the sources of the dataflow
    Dependence(),  # regions hold latent work only, so this comes before form-regions
    FormRegions(),
    TagStability(),  # needs regions to attach to
)
REWRITE: tuple[Pass, ...] = (
    PlanSteps(),  # binds the schedule to regions
    InsertCache(),  # regions are node names: nothing may rename or remove nodes before this
    HoistInvariant(),  # after insert-cache: invariants are then live-ins of the cond, outside it
    Specialize(),  # needs every cond in place
    LowerCond(),  # a guarded step is made of two variants
    Cleanup(),  # last: specialisation leaves equal and dead nodes
)
DEFAULT: tuple[Pass, ...] = ANALYSIS + REWRITE
BY_NAME: dict[str, Pass] = {p.name: p for p in DEFAULT}

Callback = Callable[[StepGraph, Pass, PassResult, float], None]


@dataclass
class Report:
    """Seconds and figures of each pass that ran, in order."""

    seconds: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    stats: list[tuple[str, Stats]] = field(default_factory=list[tuple[str, Stats]])
    changed: list[str] = field(default_factory=list[str])


def run(
    graph: StepGraph,
    passes: Sequence[Pass],
    ctx: PassContext,
    *,
    before: Callable[[StepGraph, Pass], None] | None = None,
    callback: Callback | None = None,
    check: str = "fast",
) -> tuple[StepGraph, Report]:
    """Apply `passes` in order; gives the final graph and a report.

    After each pass the verifier runs: `check` is "full" (recomputes every shape), "fast" (does
    not) or "off". `callback(before, pass, result, seconds)` sees every step: printing, timing
    and statistics hang on it. `before(graph, pass)` sees the graph first, since the analysis
    annotates nodes where they are. Raises PassError where a pass's requirement is not established
    or a pass refuses the graph, VerifyError where a rule breaks.
    """
    report = Report()
    for step in passes:
        missing = step.requires - graph.facts
        if missing:
            makers = ", ".join(sorted(p.name for p in DEFAULT if p.ensures & missing))
            raise PassError(
                f"{step.name} requires {', '.join(sorted(missing))}, which no earlier pass "
                f"established; run {makers} before it"
            )
        if before is not None:
            before(graph, step)
        started = time.perf_counter()
        result = step.apply(graph, ctx)
        elapsed = time.perf_counter() - started
        report.seconds.append((step.name, elapsed))
        report.stats.append((step.name, result.stats))
        if result.modified:
            report.changed.append(step.name)
        if check != "off":
            verify(result.graph, ctx, step.name, recompute=check == "full")
        if callback is not None:
            callback(graph, step, result, elapsed)
        graph = result.graph
    return graph, report
