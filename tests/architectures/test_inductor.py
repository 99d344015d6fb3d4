"""Architectures through Inductor, as users run them: all other tests here keep every bit instead.

With policy none Inductor is given the whole graph, as without ditcache: not a bit differs. All
other policies hand it the blocks one kind at a time, so that it fuses nothing across their borders,
and sums are taken in another order: results agree to 1e-5 of their size. What is remembered of such
a program, and which steps it leaves out, changes no bit of the steps that it computes.
"""

from __future__ import annotations

from typing import Any

import ditcache
import pytest
import torch
from ditcache.runtime.session import session_of
from torch import Tensor, nn

from bench.architectures import ARCHITECTURES, Request

from . import foreign
from .outside import planned_by_hand, same

STEPS = Request(4)
NAMES = ["DiT", "Flux", "Wan 2.1 T2V", "UNet, Stable Diffusion"]


def compiled(model: nn.Module, policy: str, **more: Any) -> Any:
    options = {"inner": "inductor", "policy": policy, "remember": False} | more
    return torch.compile(model, backend="ditcache", options=options)


def near(one: Tensor, two: Tensor) -> None:
    assert (one - two).norm() <= 1e-5 * two.norm(), f"{(one - two).norm() / two.norm():.2g}"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_off_it_is_inductor_and_a_plan_is_the_loop_by_hand(name):
    architecture = ARCHITECTURES[name]
    model, sampler = architecture.build(), architecture.sampler()
    with torch.no_grad():
        torch._dynamo.reset()
        expected = sampler(torch.compile(model, backend="inductor"), STEPS)
        near(expected, sampler(model, STEPS))
        torch._dynamo.reset()
        off = compiled(model, "none")
        same(sampler(off, STEPS), expected)
        torch._dynamo.reset()
        unhoisted = sampler(compiled(model, "exact", hoist_budget=0), STEPS)
        near(unhoisted, expected)
        torch._dynamo.reset()
        made = compiled(model, "exact")
        same(sampler(made, STEPS), unhoisted)
        profile = ditcache.calibrate(made, lambda _: sampler(made, STEPS), samples=1)
        plan = profile.plan(computed_steps=2)
        ditcache.apply(made, plan)
        ours = sampler(made, STEPS)
        with planned_by_hand(model, plan, architecture.branches) as by_hand:
            near(ours, sampler(by_hand, STEPS))
        assert (ours - expected).norm() > 1e-5 * expected.norm(), "the plan did nothing"
        summary = ditcache.summary(made)
    torch._dynamo.reset()
    assert (summary.fallbacks, summary.uncached) == ({}, ())
    assert summary.forecast == 2 * architecture.branches


def test_symbolic_sizes_run_one_graph_planned_at_the_recorded_size():
    """Numbers of the model become inputs; Inductor asks Dynamo for a trace with them as constants.

    The third generation runs under the plan, and one of another size is computed.
    """
    torch._dynamo.reset()
    model, label = foreign.build(foreign.OriginalDiT), torch.tensor([3])
    options = {"computed_steps": 4, "remember": False}
    made = torch.compile(model, backend="ditcache", dynamic=True, options=options)

    def generate(net: nn.Module, seed: int, side: int = 8) -> Tensor:
        x = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))
        for t in torch.linspace(1.0, 0.125, 8):
            x = x - 0.125 * net(x, 999 * t[None], label)[:, :4]
        return x

    with torch.no_grad():
        for seed in range(2):
            near(generate(made, seed), generate(model, seed))
        ours = generate(made, 2)
        with planned_by_hand(model, own_plan(model), 1) as by_hand:
            near(ours, generate(by_hand, 2))
        near(generate(made, 3, side=12), generate(model, 3, side=12))
    summary = ditcache.summary(made)
    torch._dynamo.reset()
    assert (summary.forecast, summary.graphs, summary.uncached) == (4, 1, ())


def own_plan(model: nn.Module) -> ditcache.Plan:
    session = session_of(model)
    assert session is not None
    return session.plans[0]
