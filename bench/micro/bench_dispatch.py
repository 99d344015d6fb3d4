"""What a call costs beside the model's own work: a two-block model makes that visible.

`eager` runs the model itself, `computed` a full step through ditcache, `skipped` a forecast step;
`guards` is a backend that returns at once, the floor that Dynamo sets.
"""

from __future__ import annotations

from typing import Any

import ditcache
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from .conftest import flux_inputs, small_flux

STEPS = 1_000_000  # a grid longer than any benchmark: every call is a new step


def plan_that(skips: bool, signature: str, steps: int = 4000) -> ditcache.Plan:
    computed = (0, 1) if skips else tuple(range(steps))
    rows = tuple((0.0, 0.0) if i in set(computed) else (1.5, -0.5) for i in range(steps))
    grid = tuple(1.0 - i / steps for i in range(steps))
    schedule = ditcache.RegionSchedule("denoiser", computed, rows, 2, "lagrange-1", "head")
    return ditcache.Plan(signature, grid, (schedule,), "lagrange-1")


@pytest.mark.parametrize("what", ["eager", "guards", "none", "computed", "skipped"])
@pytest.mark.parametrize("guards", ["guarded", "unguarded"])
def test_call(benchmark: BenchmarkFixture, what: str, guards: str) -> None:
    torch._dynamo.reset()
    model, inputs = small_flux(2), flux_inputs()
    output = torch.zeros(1, 16, 16)
    options: dict[str, Any] = {}
    if guards == "unguarded":
        options["guard_filter_fn"] = torch.compiler.skip_guard_on_all_nn_modules_unsafe
    if what == "eager":
        called: Any = model
    elif what == "guards":
        called = torch.compile(
            model, backend=lambda *_, **__: lambda *_: (output,), options=options
        )
    else:
        options |= {"inner": "eager", "policy": "none"}
        called = torch.compile(model, backend="ditcache", options=options)
    steps, state = 4000, {"i": 0}
    timesteps = [torch.tensor([1.0 - i / steps]) for i in range(steps)]
    with torch.no_grad():
        called(**inputs)
        if what in ("computed", "skipped"):
            signature = ditcache.calibrate(called, lambda _: _three(called, inputs), 1).signature
            ditcache.apply(called, plan_that(what == "skipped", signature, steps))

        def call() -> None:
            state["i"] = (state["i"] + 1) % steps
            called(**{**inputs, "timestep": timesteps[state["i"]]})

        state["i"] = -1
        benchmark.pedantic(call, rounds=300, warmup_rounds=5)


def _three(called: torch.nn.Module, inputs: dict[str, object]) -> None:
    for t in (0.9, 0.6, 0.3):
        called(**{**inputs, "timestep": torch.tensor([t])})
