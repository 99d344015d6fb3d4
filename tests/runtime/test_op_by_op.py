"""Under a dispatch mode that looks at ops, such as a FLOP counter, plans go on and ops are seen."""

from __future__ import annotations

import ditcache
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from .helpers import Denoiser, compiled, counting, generate, make_plan, noise, planned, prompt

STEPS = 12


def flops_of(model) -> int:
    with FlopCounterMode(display=False) as flops:
        generate(model, seed=4)
    return flops.get_total_flops()


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_a_flop_counter_sees_what_ran(inner: str):
    model = Denoiser()
    made = compiled(model, policy="none", inner=inner)
    made(noise(), torch.ones(1), prompt())
    plan = make_plan(model)
    ditcache.apply(made, plan)
    before = generate(made, seed=4)
    done = ditcache.summary(made)
    with counting() as ran:
        counted = flops_of(made)
    now = ditcache.summary(made)
    assert ran["body"] == plan.computed_steps
    assert counted == 2 * (now.macs - done.macs)
    assert counted < 0.6 * flops_of(model)
    after = generate(made, seed=4)
    torch.testing.assert_close(after, before)
    assert ditcache.summary(made).forecast - now.forecast == STEPS - plan.computed_steps


def test_a_flop_counter_changes_no_bit():
    made, _ = planned(Denoiser())
    before = generate(made, seed=4)
    with FlopCounterMode(display=False):
        assert torch.equal(generate(made, seed=4), before)


@pytest.mark.parametrize("policy", ["none", "exact"])
def test_without_a_plan_the_model_is_counted(policy: str):
    model = Denoiser()
    made = compiled(model, policy=policy, inner="inductor")
    generate(made)
    done = ditcache.summary(made)
    counted = flops_of(made)
    now = ditcache.summary(made)
    assert counted == 2 * (now.macs - done.macs)
    assert counted == flops_of(model) or policy == "exact"


def test_generations_are_recorded_under_a_flop_counter():
    made = compiled(Denoiser(), inner="eager")
    generate(made)  # Dynamo compiles nothing under a mode that it meets first
    with FlopCounterMode(display=False):
        for seed in range(3):
            generate(made, seed=seed)
    assert ditcache.summary(made).forecast > 0
