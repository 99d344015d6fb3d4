"""Two models of one architecture share Dynamo's compiled code, and nothing else."""

from __future__ import annotations

import copy
import gc
import weakref

import ditcache
import torch
from ditcache.runtime.session import session_of
from torch import nn


class Small(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.proj = nn.Linear(8, 8)
        self.time = nn.Linear(1, 8)

    def forward(self, x, timestep):
        return torch.tanh(self.proj(x) + self.time(timestep[:, None])[:, None])


def grid(steps=12):
    return torch.linspace(1, 0, steps + 1)


def step(model, x, s, ts):
    return x + (ts[s + 1] - ts[s]) * model(x, ts[s].expand(2))


def compiled(model):
    options = {"inner": "eager", "remember": False}
    return torch.compile(copy.deepcopy(model), backend="ditcache", options=options)


def generate(model, seed, steps=12):
    x, ts = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed)), grid(steps)
    for s in range(steps):
        x = step(model, x, s, ts)
    return x


def test_each_has_its_own_figures_and_plans():
    one, other = compiled(Small(0)), compiled(Small(1))
    for seed in range(4):
        generate(one, seed)
    assert ditcache.summary(one).forecast > 0
    before = ditcache.summary(one).calls
    for seed in range(2):  # still recording: nothing of the first model's plan applies
        assert torch.equal(generate(other, seed), generate(Small(1), seed))
    assert ditcache.summary(other).forecast == 0
    assert ditcache.summary(other).recorded >= 1
    assert ditcache.summary(one).calls == before


def test_taking_turns_within_a_generation_equals_running_alone():
    def two():
        torch._dynamo.reset()
        made = compiled(Small(0)), compiled(Small(1))
        for model in made:
            for seed in range(3):
                generate(model, seed)
        return made

    alone = [generate(model, 7) for model in two()]
    first, second = two()
    ts = grid()
    xs = [torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    for s in range(12):
        xs = [step(m, x, s, ts) for m, x in zip((first, second), xs, strict=True)]
    for got, expected in zip(xs, alone, strict=True):
        assert torch.equal(got, expected)
    assert ditcache.summary(first).forecast > 0
    assert ditcache.summary(second).forecast > 0


def test_removing_one_leaves_the_other():
    one, other = compiled(Small(0)), compiled(Small(1))
    for model in (one, other):
        for seed in range(3):
            generate(model, seed)
    ditcache.remove(one)
    held = ditcache.summary(other).forecast
    assert torch.equal(generate(one, 9), generate(Small(0), 9))
    generate(other, 9)
    assert ditcache.summary(other).forecast > held


def test_a_replaced_weight_leaves_a_model_its_compiled_parts():
    one, other = compiled(Small(0)), compiled(Small(1))
    for model in (one, other):
        generate(model, 0)
        before = [weakref.ref(executor) for executor in session_of(model).executors]
        weight = model._orig_mod.proj.weight
        model._orig_mod.proj.weight = nn.Parameter(2 * weight.detach())
        del weight
        gc.collect()
        assert torch.equal(generate(model, 1), generate(model._orig_mod, 1))
        assert len(before) == 1
        assert session_of(model).executors == [known() for known in before]
