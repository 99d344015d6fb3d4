"""Granularity: what to forecast at a given saving, the whole denoiser or parts of it.

A part's effect on the final sample cannot be read off its own inner products: what comes after it
is not linear. So nothing is scored here. Candidates of equal work are offered, costed on the graph;
which of them is best has to be found by running them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..ir import StepGraph
from ..plan_format import Plan, PlanError
from ..roles import MLP
from ..selectors import resolve
from .base import Policy, Subject
from .partial import Branches, Partial
from .taylorseer import TaylorSeer


@dataclass(frozen=True)
class Costed:
    """A policy, its plan, and uncached over planned MACs of the latent work of a generation."""

    policy: Policy
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


def candidates(graph: StepGraph, on: Subject, speedup: float) -> list[Costed]:
    """Plans that save about as much as `speedup` asks, by granularity, most saving first.

    The whole denoiser, the middle of the chain between one to a quarter of the blocks at both ends,
    and attention alone, each at the smallest interval that reaches the saving. A granularity that
    cannot reach it (the ends alone cost more) is left out, so that for a high saving only the whole
    denoiser remains. Raises PlanError if `speedup` is below 1.
    """
    if not speedup >= 1.0:
        raise PlanError(f"speedup must be a number of at least 1, got {speedup}")
    found = [c for kind in _kinds(on) if (c := _reaching(graph, on, kind, speedup)) is not None]
    return sorted(found, key=lambda c: -c.reduction)


def _kinds(on: Subject) -> Iterator[Policy]:
    yield TaylorSeer(order=1, level="output")
    quarter = max(on.outline.blocks // 4, 1)
    for ends in sorted({1, quarter}):
        if on.outline.blocks > 2 * ends:
            yield Partial(front=ends, back=ends)
    if any(role != MLP for role in on.outline.roles):
        yield Branches()


def _reaching(graph: StepGraph, on: Subject, kind: Policy, speedup: float) -> Costed | None:
    for interval in range(1, on.steps + 1):
        policy = replace(kind, interval=interval)  # pyright: ignore[reportCallIssue]
        plan = policy.plan(on)
        reduction = macs_reduction(graph, plan)
        if reduction >= speedup - 1e-9:
            return Costed(policy, plan, reduction)
    return None
