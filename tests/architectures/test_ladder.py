"""Every architecture through its own pipeline: nothing changed, then exactly what the plan says."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import ditcache
import pytest
import torch
from torch import Tensor

from bench.architectures import ARCHITECTURES, Architecture, Request
from bench.coverage import COMPUTED, STEPS, compile_for_tests, cover

from .outside import Products, planned_by_hand, same

ONE_GRAPH = [name for name, a in ARCHITECTURES.items() if a.single_graph]
SMALL, OTHER = Request(STEPS), Request(STEPS, seed=1)
LARGE, FEWER = Request(STEPS, large=True), Request(STEPS - 3)
TABLE = Path(__file__).resolve().parents[2] / "bench" / "results" / "coverage.json"


class Run:
    """One architecture: the plain model, the same compiled without caching, and covered."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.covered = cover(architecture)
        self.model, self.sampler = architecture.build(), architecture.sampler()
        self._eager: dict[Request, Tensor] = {}
        if architecture.lazy:
            self.sampler(self.model, Request(1))
        # With policy none a plan skips steps and hoists nothing.
        self.compiled = compile_for_tests(self.model, "none")

    def eager(self, request: Request) -> Tensor:
        if request not in self._eager:
            self._eager[request] = self.sampler(self.model, request)
        return self._eager[request]

    def by_hand(self, request: Request) -> Tensor:
        assert self.covered.plan is not None
        with planned_by_hand(self.model, self.covered.plan, self.architecture.branches) as model:
            return self.sampler(model, request)

    def products(self, model, request: Request) -> int:
        with Products() as counted:
            self.sampler(model, request)
        return counted.count


@pytest.fixture(scope="module")
def runs():
    return {}


@pytest.fixture
def run(request, runs):
    with torch.no_grad():
        if request.param not in runs:
            runs.clear()  # one at a time
            runs[request.param] = Run(ARCHITECTURES[request.param])
        yield runs[request.param]


def near(one, two):
    """Equal up to the order of fp32 sums, on the scale of the result."""
    assert (one - two).norm() <= 2e-6 * two.norm(), f"{(one - two).norm() / two.norm():.2g}"


each = pytest.mark.parametrize("run", ONE_GRAPH, indirect=True, scope="module")


@each
def test_policy_none_changes_no_bit(run):
    for request in (SMALL, OTHER, LARGE, FEWER):
        same(run.sampler(run.compiled, request), run.eager(request))


@each
def test_a_plan_equals_the_loop_by_hand_in_every_generation(run):
    """Two in a row, then sizes and steps that the plan is not for, then the first again."""
    ditcache.apply(run.compiled, run.covered.plan)
    first = run.sampler(run.compiled, SMALL)
    near(first, run.by_hand(SMALL))
    assert (first - run.eager(SMALL)).norm() > 2e-5 * first.norm(), "the plan did nothing"
    near(run.sampler(run.compiled, OTHER), run.by_hand(OTHER))
    large = run.sampler(run.compiled, LARGE)
    if run.architecture.sizes:
        same(large, run.eager(LARGE))
    else:
        near(large, run.by_hand(LARGE))
    same(run.sampler(run.compiled, FEWER), run.eager(FEWER))
    same(run.sampler(run.compiled, SMALL), first)


@each
def test_as_many_steps_compute_as_the_plan_says(run):
    """Counted by the matrix products that run, from outside of ditcache."""
    assert run.covered.plan.computed_steps == COMPUTED
    ran = {}
    for computed in (range(STEPS), range(STEPS - 1), run.covered.plan.regions[0].computed):
        ditcache.apply(run.compiled, computing(run.covered.plan, computed))
        run.sampler(run.compiled, SMALL)  # what is lowered now need not be counted
        ran[len(computed)] = run.products(run.compiled, SMALL)
    a_step = ran[STEPS] - ran[STEPS - 1]
    assert ran[COMPUTED] == ran[STEPS] - (STEPS - COMPUTED) * a_step
    ditcache.remove(run.compiled)
    whole = run.products(run.compiled, SMALL)
    assert whole == run.products(run.model, SMALL)
    # Work whose result nobody reads, as a last block's text, is dropped from every planned step.
    assert 0 < a_step * STEPS <= ran[STEPS] <= whole


def computing(plan: ditcache.Plan, computed) -> ditcache.Plan:
    """The plan with other steps computed; the rest reuses the last one."""
    schedule = plan.regions[0]
    width = schedule.history
    rows = tuple((float(i not in computed), *[0.0] * (width - 1)) for i in range(STEPS))
    made = replace(schedule, computed=tuple(computed), weights=rows)
    return replace(plan, regions=(made,), checks=None)


@each
def test_the_exact_tier_changes_no_bit_and_skips_work(run):
    compiled, plan = run.covered.compiled, run.covered.plan
    ditcache.reset(compiled)
    planned = run.covered.sampler(compiled, SMALL)
    near(planned, run.by_hand(SMALL))
    ditcache.remove(compiled)
    for request in (SMALL, OTHER, LARGE, FEWER, SMALL):
        same(run.covered.sampler(compiled, request), run.eager(request))
    ditcache.apply(compiled, plan)
    if run.covered.row.hoisted_macs:
        assert sum(ditcache.summary(compiled).hoist_hits.values()) > 0


@each
def test_the_committed_table_holds(run):
    rows = {row["name"]: row for row in json.loads(TABLE.read_text())["rows"]}
    assert rows[run.architecture.name] == asdict(run.covered.row)


@pytest.mark.parametrize("run", set(ARCHITECTURES) - set(ONE_GRAPH), indirect=True)
def test_what_cannot_be_traced_is_computed_and_explained(run):
    for request in (SMALL, OTHER, LARGE):
        same(run.sampler(run.covered.compiled, request), run.eager(request))
    summary = ditcache.summary(run.covered.compiled)
    assert (summary.graphs, summary.forecast) == (0, 0)
    assert "graph break" in summary.uncached[0]
    assert "not cached" in str(summary)
