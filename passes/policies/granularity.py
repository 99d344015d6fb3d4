"""Granularity: what to forecast at a given saving, the whole denoiser or parts of it.

A part's effect on the final sample cannot be read off its own inner products: what comes after it
is not linear. So nothing is scored here. Candidates of equal work are offered, costed on the graph;
which of them is best has to be found by running them (`ditcache.tune(granularity="auto")`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..base import PassError
from ..forecasters import EDF, Lagrange
from ..ir import StepGraph
from ..outline import Outline
from ..plan_format import Plan, PlanError
from ..portfolio import ranked
from ..roles import MLP
from ..schedules import Schedule, uniform_index
from ..selectors import resolve
from .base import DENOISER, Subject

LINE = Lagrange(1)
"""Of the plain forecasts the steadiest; a solved one would need the part's own recordings."""


@dataclass(frozen=True)
class Part:
    """What of a model to forecast: a selector, and whether what is kept is its output or delta."""

    name: str
    region: str
    what: str = "output"


@dataclass(frozen=True)
class Costed:
    """A part, a plan for it, and uncached over planned MACs of a generation's latent work."""

    part: Part
    plan: Plan
    reduction: float


def macs_reduction(graph: StepGraph, plan: Plan) -> float:
    """Uncached over planned MACs of the denoiser, summed over the steps of a static plan.

    Counts what depends on the latents: hoisted work runs once either way. Raises PlanError for a
    plan that decides by data, PassError for one that names regions which the graph lacks.
    """
    if plan.rule is not None:
        raise PlanError(f"what policy {plan.policy!r} computes is only known when it runs")
    whole, steps = graph.region("denoiser").macs, len(plan.timesteps)
    saved = sum(
        (steps - len(schedule.computed)) * sum(r.macs for r in resolve(graph, schedule.region))
        for schedule in plan.regions
    )
    left = whole * steps - saved
    return whole * steps / left if left else float("inf")


def parts(of: Outline) -> Iterator[Part]:
    """What may be forecast of a model, from all of it to single branches."""
    yield Part("denoiser", DENOISER)
    if of.deep:
        yield Part("deep part", "deep")
    quarter = max(of.blocks // 4, 1)
    for ends in sorted({1, quarter}):
        if of.blocks > 2 * ends:
            yield Part(f"all but {ends} + {ends} blocks", f"blocks[{ends}:{-ends}]", "delta")
    if of.blocks:
        single = "+".join(f"blocks[{i}:{i + 1}]" for i in range(of.blocks))
        yield Part("each block", single, "delta")
    if of.roles:
        yield Part("each branch", "+".join(f"{role}[:]" for role in of.roles))
    attention = [f"{role}[:]" for role in of.roles if role != MLP]
    if attention and len(attention) < len(of.roles):
        yield Part("attention", "+".join(attention))


def candidates(graph: StepGraph, on: Subject, speedup: float) -> list[Costed]:
    """Plans that save at least what `speedup` asks, as little more as whole steps allow.

    Each part of the model computes at as many steps as its share of the MACs leaves it, spread
    evenly, and, with a profile, also at the steps that a solved plan of so many for the whole
    denoiser computes. A part that cannot save as much (the rest alone costs more) is left out, so
    that for a high saving only the whole denoiser remains. Raises PlanError if `speedup` is below 1
    or the graph has no denoiser that may be cached.
    """
    if not speedup >= 1.0:
        raise PlanError(f"speedup must be a number of at least 1, got {speedup}")
    if not any(r.name == "denoiser" for r in graph.regions):
        raise PlanError("this graph is no denoiser: there is nothing in it to cache")
    found: list[Costed] = []
    for part in parts(on.outline):
        n = _steps(graph, on, part, speedup)
        for computed in _spreads(on, n) if n else ():
            plan = _plan(on, part, computed)
            found.append(Costed(part, plan, macs_reduction(graph, plan)))
    return found


def _steps(graph: StepGraph, on: Subject, part: Part, speedup: float) -> int:
    """At how many steps the part may compute; 0 where that is too few for a line through two."""
    try:
        regions = resolve(graph, part.region)
    except PassError:
        return 0
    macs, whole = sum(r.macs for r in regions), graph.region("denoiser").macs
    if any(r.refusal is not None for r in regions) or not macs:
        return 0
    allowed = on.steps * (1 - (1 - 1 / speedup) * whole / macs)
    n = int(np.floor(allowed + 1e-9))
    return min(n, on.steps) if n >= LINE.history else 0


def _spreads(on: Subject, n: int) -> list[Schedule]:
    spreads = [uniform_index(on.steps, n)]
    if on.profile is not None and on.profile.region(DENOISER) is not None and n < on.steps:
        c = on.solver if on.solver is not None else np.ones(on.steps)
        solved = ranked(on.gram(DENOISER), np.asarray(on.timesteps), c, n)
        spreads += [next(s.steps for s in solved if isinstance(s.forecaster, EDF))]
    return list(dict.fromkeys(spreads))


def _plan(on: Subject, part: Part, computed: Schedule) -> Plan:
    output = on.profile.region(DENOISER) if on.profile is not None else None
    return Plan(
        signature=on.signature,
        timesteps=on.timesteps,
        regions=(on.schedule(part.region, computed, LINE, what=part.what, name=part.name),),
        policy="granularity",
        guidance=on.guidance,
        shape=output.shape if output is not None else None,
        dtype=output.dtype if output is not None else None,
    ).validate()
