"""Each policy that decides by data equals its rule written by hand, decision by decision."""

from __future__ import annotations

import contextlib

import ditcache
import pytest
import torch

from ..runtime.helpers import compiled, counting, euler, noise, prompt
from . import loops
from .models import STEPS, Dit, compare, denoise, grid, replaced, run


def uncached(model):
    return [denoise(model, seed) for seed in range(2)]


class Front:
    """First Block Cache: a Run that asks about what the blocks before it added."""

    def __init__(self, model, front, back, threshold, warmup=1, limit=-1, order=0):
        self.entered, self.reference, self.row, self.computed = None, None, 0, []
        self.threshold, self.warmup, self.limit = threshold, warmup, limit
        self.run = loops.Run(model.blocks, front, len(model.blocks) - back, self.computes, order)
        self.first = model.blocks[0]

    def pairs(self):
        return [(self.first, self.enter), *self.run.pairs()]

    def enter(self, forward, x, *rest):
        self.entered = x
        return forward(x, *rest)

    def computes(self, x):
        residual = x - self.entered
        skip = (
            self.reference is not None
            and self.run.step >= self.warmup
            and loops.relative(residual, self.reference) <= self.threshold
            and not 0 <= self.limit <= self.row
        )
        self.row = self.row + 1 if skip else 0
        if not skip:
            self.reference = residual
            self.computed.append(self.run.step)
        return not skip


def front_block_cache(model, *args, **kwargs):
    results, computed = [], []
    for seed in range(2):
        front = Front(model, *args, **kwargs)
        with replaced(*front.pairs()):
            results.append(denoise(model, seed))
        computed.append(front.computed)
    return results, computed


@pytest.mark.parametrize("threshold", [0.05, 0.15, 0.3])
def test_first_block_cache_equals_its_loop(threshold):
    model = Dit()
    ours, ran, _ = run(model, "firstblockcache", threshold=threshold)
    theirs, computed = front_block_cache(model, 1, 0, threshold)
    compare(ours, theirs, uncached(model))
    assert 1 < len(computed[-1]) < STEPS, "the threshold decides nothing"
    assert ran["mlp"] == STEPS + 3 * len(computed[-1])


@pytest.mark.parametrize(
    ("front", "back", "order", "limit"), [(1, 1, 0, -1), (2, 1, 0, 1), (1, 0, 1, 2), (1, 1, 2, -1)]
)
def test_dbcache_equals_its_loop(front, back, order, limit):
    model = Dit()
    ours, ran, _ = run(
        model, "dbcache", front=front, back=back, threshold=0.3, warmup=3,
        max_continuous=limit, order=order,
    )  # fmt: skip
    theirs, computed = front_block_cache(model, front, back, 0.3, 3, limit, order)
    compare(ours, theirs, uncached(model), 2e-5 if order else 0.0)
    middle = 4 - front - back
    assert computed[-1][:3] == [0, 1, 2]
    assert len(computed[-1]) < STEPS
    assert ran["mlp"] == STEPS * (front + back) + len(computed[-1]) * middle


def test_dbcache_stops_at_its_limit_of_cached_steps():
    model = Dit()
    _, ran, _ = run(model, "dbcache", front=1, back=0, threshold=9.0, warmup=1, max_cached=2)
    assert ran["mlp"] == STEPS + 3 * (STEPS - 2)


@pytest.mark.parametrize("coefficients", [(1.0, 0.0), (2.0, 1.5, 0.01)])
def test_teacache_equals_its_loop(coefficients):
    model, threshold = Dit(), 0.4
    ours, ran, _ = run(model, "teacache", threshold=threshold, coefficients=coefficients)
    results, computed = [], []
    for seed in range(2):
        state = {"before": None, "sum": 0.0, "steps": []}
        block = model.blocks[0]

        def computes(x, state=state, block=block):
            step = len(state["steps"])
            temb = model.time((state["t"][:, None] * torch.arange(1.0, 5.0)).sin())
            scale, shift, *_ = block.modulation(temb)[:, None].chunk(6, -1)
            modulated = block.norm(x) * (1 + scale) + shift
            if step in (0, STEPS - 1):
                compute = True
            else:
                distance = loops.relative(modulated, state["before"])
                power = range(len(coefficients) - 1, -1, -1)
                state["sum"] += sum(
                    a * distance**p for a, p in zip(coefficients, power, strict=True)
                )
                compute = state["sum"] >= threshold
            if compute:
                state["sum"] = 0.0
            state["before"] = modulated
            state["steps"].append(compute)
            return compute

        def remember(forward, x, t, text, state=state):
            state["t"] = t
            return forward(x, t, text)

        blocks = loops.Run(model.blocks, 0, 4, computes)
        with replaced((model, remember), *blocks.pairs()):
            results.append(denoise(model, seed))
        computed.append(sum(state["steps"]))
    compare(ours, results, uncached(model))
    assert 2 < computed[-1] < STEPS, "the threshold decides nothing"
    assert ran["mlp"] == 4 * computed[-1]


def test_easycache_equals_its_loop():
    model, threshold, warmup, end = Dit(), 0.5, 3, 1
    ours, ran, _ = run(model, "easycache", threshold=threshold, warmup=warmup, end=end)
    results, computed = [], []
    for seed in range(2):
        s = {"i": 0, "n": 0, "rate": None, "sum": 0.0, "x": None, "cx": None, "cy": None}

        def step(forward, x, t, text, s=s):
            i, s["i"] = s["i"], s["i"] + 1
            skip = False
            if warmup <= i < STEPS - end and s["rate"] is not None:
                s["sum"] += s["rate"] * mean(x - s["x"]) / mean(s["cy"])
                skip = s["sum"] < threshold
            s["x"] = x
            if skip:
                return x + (s["cy"] - s["cx"])
            y = forward(x, t, text)
            if s["cy"] is not None:
                s["rate"] = mean(y - s["cy"]) / mean(x - s["cx"])
            s["cx"], s["cy"], s["sum"], s["n"] = x, y, 0.0, s["n"] + 1
            return y

        with replaced((model, step)):
            results.append(denoise(model, seed))
        computed.append(s["n"])
    compare(ours, results, uncached(model))
    assert warmup < computed[-1] < STEPS, "the threshold decides nothing"
    assert ran["mlp"] == 4 * computed[-1]


def mean(value):
    return value.abs().mean().item()


def test_a_decision_is_taken_in_each_branch_and_generation_alone():
    model = Dit()
    alone, _, plan = run(model, "firstblockcache", threshold=0.15)
    made = torch.compile(model, backend="ditcache", options={"inner": "eager", "plan": plan})
    again = [denoise(made, seed) for seed in (1, 0, 1)]
    for ours, theirs in zip(again, (alone[1], alone[0], alone[1]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def guided(model, seed, names=None, call=None):
    """Two calls a step on the same latents, their outputs combined; what ran in each call."""
    texts, marks = (prompt(seed), 3 * prompt(99)), ([], [])

    def forward(x, t, _):
        outs = []
        for n, text in enumerate(texts):
            scope = ditcache.branch(names[n]) if names else contextlib.nullcontext()
            with scope, counting() as ran:
                outs.append(model(x, t.expand(1), text) if call is None else call(n, x, t, text))
            marks[n].append(ran["mlp"])
        return outs[1] + 2.0 * (outs[0] - outs[1])

    return euler(forward, noise(seed), grid(STEPS)), marks


@pytest.mark.parametrize("names", [("cond", "uncond"), None])
def test_branches_of_sequential_guidance_decide_by_themselves(names):
    model, threshold = Dit(), 0.15
    _, _, plan = run(model, "firstblockcache", threshold=threshold)
    made = compiled(model, plan=plan)
    for seed in range(2):
        fronts = [Front(model, 1, 0, threshold) for _ in range(2)]

        def call(n, x, t, text, fronts=fronts):
            with replaced(*fronts[n].pairs()):
                return model(x, t.expand(1), text)

        ours, ran = guided(made, seed, names)
        theirs, expected = guided(model, seed, call=call)
        assert ran == expected, "a branch decided otherwise than by hand"
        assert ran[0] != ran[1], "the branches decide alike, which shows nothing"
        assert all(1 < len(front.computed) < STEPS for front in fronts)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert not ditcache.summary(made).fallbacks


def test_a_plan_file_holds_the_rule(tmp_path):
    model = Dit()
    ours, _, plan = run(model, "dbcache", front=1, back=1, threshold=0.3, warmup=2, order=1)
    plan.save(tmp_path / "p.json")
    loaded = ditcache.Plan.load(tmp_path / "p.json")
    assert loaded == plan
    made = torch.compile(
        model, backend="ditcache", options={"inner": "eager", "plan": tmp_path / "p.json"}
    )
    torch.testing.assert_close([denoise(made, i) for i in range(2)], ours, rtol=0, atol=0)


def test_a_threshold_of_zero_computes_every_step():
    model = Dit()
    ours, ran, _ = run(model, "firstblockcache", threshold=0.0)
    assert ran["mlp"] == 4 * STEPS
    torch.testing.assert_close(ours, uncached(model), rtol=0, atol=0)
