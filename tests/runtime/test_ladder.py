"""The numerical ladder: from "changes nothing" to "equals the plan written by hand"."""

from __future__ import annotations

import ditcache
import pytest
import torch
from ditcache.passes.portfolio import POLICIES

from .helpers import (
    Denoiser,
    compiled,
    counting,
    euler,
    first,
    forecast_by_hand,
    generate,
    grid,
    make_plan,
    noise,
    planned,
    prompt,
)

INDUCTOR_TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # fusion reorders fp32 sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("policy", ["none", "exact", "edf"])
def test_e0_without_a_plan_the_output_is_bit_equal(policy, dtype):
    model = Denoiser().to(dtype)
    made = compiled(model, policy=policy, remember=False, profile_generations=100)
    for seed in range(2):
        torch.testing.assert_close(
            generate(made, seed, dtype=dtype), generate(model, seed, dtype=dtype), rtol=0, atol=0
        )


def test_e0_inductor_is_bit_equal_to_its_own_regions_and_close_to_eager():
    model = Denoiser()
    made = compiled(model, policy="exact", inner="inductor")
    ours, eager = generate(made), generate(model)
    torch.testing.assert_close(ours, eager, **INDUCTOR_TOLERANCE)
    plan = make_plan(model, computed=range(12), row=(1.0,))
    ditcache.apply(made, plan)
    with counting() as ran:
        torch.testing.assert_close(generate(made), ours, rtol=0, atol=0)
    assert ran["body"] == 12


@pytest.mark.parametrize("history", [1, 2, 3])
def test_e1_a_plan_that_always_misses_changes_nothing(history):
    model = Denoiser()
    made, _ = planned(model, computed=range(12), row=(1.0,) * history)
    with counting() as ran:
        ours = generate(made)
    assert ran["body"] == 12
    torch.testing.assert_close(ours, generate(model), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_e2_the_same_input_twice_with_a_forced_hit_is_bit_equal(dtype):
    model = Denoiser().to(dtype)
    made = compiled(model, policy="none")
    x, text = noise(dtype=dtype), prompt(dtype=dtype)
    made(x, torch.ones(1, dtype=dtype), text)
    ditcache.apply(made, make_plan(model, [1.0, 0.5], computed=(0,), row=(1.0,)))
    one = first(made(x, torch.tensor([1.0], dtype=dtype), text))
    with counting() as ran:
        two = first(made(x, torch.tensor([0.5], dtype=dtype), text))
    assert not ran
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    assert two.data_ptr() != one.data_ptr()


ROWS = {
    "reuse": (1.0,),
    "taylor-1": (2.0, -1.0),
    "lagrange-1": (1.5, -0.5),
    "taylor-2": (3.0, -3.0, 1.0),
    "four": (4.0, -6.0, 4.0, -1.0),
}


@pytest.mark.parametrize("inner", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ROWS)
def test_e4_a_plan_equals_the_same_loop_by_hand(name, inner):
    model = Denoiser()
    computed = (0, 1, 2, 3, 6, 9)
    made = compiled(model, policy="none", inner=inner)
    made(noise(), torch.ones(1), prompt())
    plan = make_plan(model, computed=computed, row=ROWS[name])
    ditcache.apply(made, plan)
    for seed in range(2):
        with counting() as ran:
            ours = generate(made, seed)
        assert ran["body"] == len(computed)
        text = prompt(seed)

        def forward(x, t, _, text=text):
            return first(model(x, t.expand(1), text))

        theirs = euler(forecast_by_hand(plan, forward), noise(seed), grid())
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if inner == "eager" else INDUCTOR_TOLERANCE
        torch.testing.assert_close(ours, theirs, **tolerance)
        assert (ours - generate(model, seed)).abs().max() > 1e-4, "the plan did nothing"


@pytest.mark.parametrize("policy", ["edf", "reuse", "taylor-2-best", "lagrange-1"])
@pytest.mark.parametrize("budget", [{"speedup": 2.0}, {"computed_steps": 4}, {"max_error": 0.05}])
def test_e4_solved_plans_equal_the_same_loop_by_hand(policy, budget):
    assert policy in POLICIES
    model = Denoiser()
    made = compiled(model, policy="none")
    profile = ditcache.calibrate(made, lambda i: generate(made, 10 + i), samples=3)
    plan = profile.plan(policy=policy, **budget)
    ditcache.apply(made, plan)
    with counting() as ran:
        ours = generate(made)
    assert ran["body"] == plan.computed_steps < 12
    text = prompt()
    by_hand = forecast_by_hand(plan, lambda x, t, _: first(model(x, t.expand(1), text)))
    torch.testing.assert_close(ours, euler(by_hand, noise(), grid()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_e4_half_precision_slots_accumulate_in_fp32(dtype):
    model = Denoiser().to(dtype)
    made = compiled(model, policy="none")
    x, text = noise(dtype=dtype), prompt(dtype=dtype)
    made(x, torch.ones(1, dtype=dtype), text)
    times = [1.0, 0.875, 0.75, 0.5]  # exact in all dtypes
    plan = make_plan(model, times, computed=(0, 1, 2), row=(3.0, -3.0, 1.0))
    ditcache.apply(made, plan)
    outs = [first(made(x, torch.tensor([t], dtype=dtype), text)) for t in times]
    total = 3.0 * outs[2].float() - 3.0 * outs[1].float() + outs[0].float()
    torch.testing.assert_close(outs[3], total.to(dtype), rtol=0, atol=0)


def test_regions_within_the_model_can_be_planned_by_a_plan_of_ones_own():
    model = Denoiser(blocks=3)
    made = compiled(model, policy="none")
    made(noise(), torch.ones(1), prompt())
    whole = make_plan(model, [1.0, 0.5], computed=(0,), row=(1.0,))
    middle = ditcache.RegionSchedule("blocks.1", (0,), ((0.0,), (1.0,)), 1, "by hand", "by hand")
    ditcache.apply(made, ditcache.Plan(whole.signature, (1.0, 0.5), (middle,), "edf"))
    x, text = noise(), prompt()
    kept: dict[str, torch.Tensor] = {}

    def keep(_, __, out):
        if "out" in kept:
            return kept["out"]
        kept["out"] = out
        return None

    ours = [first(made(x, torch.tensor([t]), text)) for t in (1.0, 0.5)]
    handle = model.blocks[1].register_forward_hook(keep)
    theirs = [first(model(x, torch.tensor([t]), text)) for t in (1.0, 0.5)]
    handle.remove()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
