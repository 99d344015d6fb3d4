"""A skipped step that a device computes where the plan was left: its IR, and what it means."""

from __future__ import annotations

import pytest
import torch
import toy_models as models
from ditcache.kernels.clock import dial_on, grid_on
from ditcache.passes.guarded_step import guarded
from ditcache.passes.ir import placeholders
from ditcache.runtime.lower import lower

STEP = {**models.inputs(), "hidden_states": models.wide()[0]}


def test_forecast_in_one_arm_and_computed_in_the_other(filecheck, lowered, planned):
    plan = planned("denoiser", computed=(0, 1), history=2)
    text = lowered(models.Step(depth=1), STEP, "cleanup", plan=plan, guarded=True)
    filecheck(
        text,
        """
        CHECK: variant 2 (decided, denoiser: forecast)  // 0 MAC {
        CHECK-NEXT:   %cache_clock = cache.clock %timestep, %guard_times, %guard_within, %guard_dial, %guard_flag : i32[4]
        CHECK-NEXT:   %cache_holds = cache.holds %cache_clock : i1 device
        CHECK-NEXT:   %cache_cond = cache.cond %cache_holds $denoiser {
        CHECK-NEXT:     hit:
        CHECK-NEXT:       %cache_forecast = cache.forecast $denoiser, %weights_denoiser, at=%cache_clock : f32[2,16,8]
        CHECK-NEXT:       yield (%cache_forecast,)
        CHECK-NEXT:     miss:
        CHECK-NEXT:       %cache_prologue = cache.prologue %prologue_step, (%timestep, @time.weight, @time.bias)
        CHECK:            yield (%[[OUT:.*]],)
        CHECK-NEXT:   }
        CHECK-NEXT:   %getitem = getitem(%cache_cond, 0)
        CHECK-NEXT:   yield ((%getitem,), ())
        """,  # noqa: E501
    )


@pytest.mark.parametrize("context", [{}, {"guarded": True}])
def test_only_where_it_is_asked_for_and_a_step_is_skipped(lowered, planned, context):
    plan = planned("denoiser", computed=(0, 1, 2, 3) if context else (0, 1))
    graph = lowered(models.Step(depth=1), STEP, "cleanup", text=False, plan=plan, **context)
    assert all(v.stage == "whole" for v in graph.variants)


class Draws(models.Step):
    """Draws noise outside of what is cached."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) + torch.randn(2, 16, 8)


def test_what_draws_random_numbers_stays_with_the_host(lowered, planned):
    """A conditional node cannot draw any."""
    plan = planned("blocks.0", computed=(0, 1))
    done = lowered(Draws(depth=1), STEP, "specialize", text=False, plan=plan)
    assert {v.modes for v in done.variants} == {(False,), (True,)}
    assert guarded(done, 4) is None


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_lowered_it_means_what_the_graph_means(lowered, planned, inner):
    """Interpreted op by op, and as it runs: forecast where the plan holds, else computed."""
    plan = planned("denoiser", computed=(0, 1), history=2)
    graph = lowered(models.Step(depth=1), STEP, "cleanup", text=False, plan=plan, guarded=True)
    module = graph.variants[-1].module
    run = lower(module, inner)
    grid, table = grid_on("cpu", plan.timesteps), torch.tensor(plan.regions[0].weights)
    found = []
    for time, flag in ((2.0, 0), (2.0, 1), (3.5, 0)):
        given = {
            "guard_times": grid.timesteps, "guard_within": grid.within,
            "guard_flag": torch.tensor([flag], dtype=torch.int32), "weights_denoiser": table,
            "slot_denoiser": torch.ones(2, 2, 16, 8), "timestep": torch.full((2,), time),
        }  # fmt: skip
        both = []
        for made in (module, run):
            dial = dial_on("cpu")
            dial.state[:2] = torch.tensor([1, 0], dtype=torch.int32)  # two steps were computed
            torch.manual_seed(1)
            args = [given.get(n.name) for n in placeholders(module.graph)]
            for i, node in enumerate(placeholders(module.graph)):
                if node.name == "guard_dial":
                    args[i] = dial.state
                elif args[i] is None:
                    args[i] = torch.randn(tuple(node.meta["example_value"].shape))
            (out,), _ = made(*args)
            both.append((out.clone(), dial.state))
        torch.testing.assert_close(*both)
        found.append((both[0][0].eq(1).all().item(), both[0][1].tolist()))
    assert [forecast for forecast, _ in found] == [True, False, False]
    assert [at[:3] for _, at in found] == [[2, 0, 0], [2, 0, 1], [1, 1, 1]]
