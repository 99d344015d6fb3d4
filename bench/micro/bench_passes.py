"""Each pass against the number of blocks."""

from __future__ import annotations

import pytest
from ditcache import Plan, RegionSchedule
from ditcache.passes import pipeline
from ditcache.passes.base import PassContext
from ditcache.passes.ir import StepGraph
from pytest_benchmark.fixture import BenchmarkFixture

STEPS = 50
ROWS = tuple((0.0, 0.0) if i % 2 == 0 or i == 1 else (1.5, -0.5) for i in range(STEPS))
COMPUTED = tuple(i for i in range(STEPS) if i % 2 == 0 or i == 1)
PLAN = Plan(
    signature="bench",
    timesteps=tuple(1 - i / STEPS for i in range(STEPS)),
    regions=(RegionSchedule("denoiser", COMPUTED, ROWS, 2, "lagrange-1", "uniform"),),
    policy="lagrange-1",
)


@pytest.mark.parametrize("name", [p.name for p in pipeline.DEFAULT])
def test_pass(benchmark: BenchmarkFixture, graph: StepGraph, name: str) -> None:
    ctx = PassContext(plan=PLAN)
    index = [p.name for p in pipeline.DEFAULT].index(name)
    before, _ = pipeline.run(graph, pipeline.DEFAULT[:index], ctx, check="off")
    benchmark.extra_info["nodes"] = len(before.graph.nodes)
    result = benchmark.pedantic(
        pipeline.DEFAULT[index].apply, args=(before, ctx), rounds=5, warmup_rounds=1
    )
    assert result.graph is not None


@pytest.mark.parametrize("check", ["off", "fast", "full"])
def test_whole_pipeline(benchmark: BenchmarkFixture, graph: StepGraph, check: str) -> None:
    ctx = PassContext(plan=PLAN)
    done, _ = benchmark.pedantic(
        pipeline.run, args=(graph, pipeline.DEFAULT, ctx), kwargs={"check": check}, rounds=3
    )
    assert len(done.variants) == 2
