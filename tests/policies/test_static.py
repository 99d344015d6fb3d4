"""Each static policy equals its rule written by hand, and computes as often as it says."""

from __future__ import annotations

import pytest
from ditcache.passes.policies import make

from . import loops
from .models import STEPS, Dit, compare, denoise, grid, run

SUM_TOLERANCE = 2e-5  # a weighted sum in another order


def uncached(model):
    return [denoise(model, seed) for seed in range(2)]


def branches(model):
    return [m for block in model.blocks for m in (block.attention, block.cross, block.mlp)]


@pytest.mark.parametrize("interval", [2, 3, 5])
def test_fora_equals_its_loop(interval):
    model = Dit()
    ours, ran, _ = run(model, "fora", interval=interval)
    theirs = loops.layers(model, [(m, lambda i: i % interval == 0) for m in branches(model)])
    compare(ours, theirs, uncached(model))
    assert ran == dict.fromkeys(("attention", "cross", "mlp"), 4 * -(-STEPS // interval))


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_taylorseer_at_layer_level_equals_its_loop(order):
    model = Dit()
    ours, ran, _ = run(model, "taylorseer", order=order, interval=4, first=2)
    steps = {0, 1, 5, 9}
    rule = [(m, lambda i: i in steps) for m in branches(model)]
    compare(ours, loops.layers(model, rule, order), uncached(model), SUM_TOLERANCE)
    assert ran == dict.fromkeys(("attention", "cross", "mlp"), 4 * len(steps))


@pytest.mark.parametrize("order", [0, 2])
def test_taylorseer_at_output_level_equals_its_loop(order):
    model = Dit()
    ours, ran, _ = run(model, "taylorseer", order=order, interval=3, first=3, level="output")
    theirs = loops.layers(model, [(model, lambda i: i in {0, 1, 2, 5, 8, 11})], order)
    compare(ours, theirs, uncached(model), SUM_TOLERANCE)
    assert ran["mlp"] == 4 * 6


def test_pab_gives_each_kind_of_branch_its_own_interval():
    model = Dit()
    until, after = 300.0, 950.0  # of a grid from 1000 down: some steps at both ends are outside
    ours, ran, plan = run(
        model, "pab", attention=2, cross_attention=3, mlp=4, until=until, after=after
    )
    inside = [until < 1000 * float(t) < after for t in grid(STEPS)]
    assert not inside[0]
    assert not inside[-1]
    assert any(inside)

    def every(n):
        return lambda i: not inside[i] or i % n == 0

    rules = [
        pair
        for block in model.blocks
        for pair in ((block.attention, every(2)), (block.cross, every(3)), (block.mlp, every(4)))
    ]
    compare(ours, loops.layers(model, rules), uncached(model))
    computed = {n: 4 * sum(map(every(n), range(STEPS))) for n in (2, 3, 4)}
    assert ran == {"attention": computed[2], "cross": computed[3], "mlp": computed[4]}
    assert len(plan.regions) == 3


@pytest.mark.parametrize(("share", "tolerance"), [(0.5, 0.0), (0.25, 0.0), (0.75, 1e-5)])
def test_delta_dit_skips_rear_blocks_early_and_front_blocks_late(share, tolerance):
    model, count = Dit(), round(4 * share)
    ours, ran, _ = run(model, "delta-dit", interval=3, share=share, boundary=0.5)
    results = []
    for seed in range(2):
        now = loops.Now()
        # The published form: one cache for each range, of which one is in use at a time.
        early = loops.at(now, lambda i: i % 3 == 0 or i >= 6)
        late = loops.at(now, lambda i: i % 3 == 0 or i < 6)
        rear = loops.Run(model.blocks, 4 - count, 4, early)
        front = loops.Run(model.blocks, 0, count, late)
        pairs = merged(front.pairs(), rear.pairs())
        with loops.replaced(*pairs):
            results.append(denoise(model, seed, now))
    compare(ours, results, uncached(model), tolerance)
    assert ran["mlp"] == 4 * 4 + 8 * (4 - count)


def merged(*lists):
    """Several patches of one module as one, the later around the earlier."""
    found = {}
    for module, patch in (pair for pairs in lists for pair in pairs):
        inner = found.get(module)
        found[module] = (
            patch
            if inner is None
            else lambda f, *a, _i=inner, _o=patch: _o(lambda *b: _i(f, *b), *a)
        )
    return list(found.items())


@pytest.mark.parametrize(("front", "back", "order"), [(1, 1, 0), (2, 0, 1), (0, 1, 2)])
def test_partial_recomputes_both_ends_of_the_chain(front, back, order):
    model = Dit()
    ours, ran, plan = run(
        model, "partial", front=front, back=back, order=order, interval=4, first=2
    )
    steps = {0, 1, 5, 9}
    theirs = loops.runs(model, [(front, 4 - back, lambda i: i in steps)], order)
    compare(ours, theirs, uncached(model), SUM_TOLERANCE if order else 0.0)
    middle = 4 - front - back
    assert ran["mlp"] == STEPS * (4 - middle) + len(steps) * middle
    assert plan.regions[0].what == "delta"


def test_branches_recompute_the_mlps():
    model = Dit()
    ours, ran, _ = run(model, "branches", interval=3, first=1, order=1)
    rules = [
        (m, lambda i: i % 3 == 0) for block in model.blocks for m in (block.attention, block.cross)
    ]
    compare(ours, loops.layers(model, rules, 1), uncached(model), SUM_TOLERANCE)
    assert ran == {"attention": 16, "cross": 16, "mlp": 4 * STEPS}


def test_names_say_what_is_known():
    for name in ("fora", "taylorseer", "pab"):
        policy = make(name)
        assert policy.name == name
        assert policy.source.startswith("arXiv")
        assert type(policy).__doc__
