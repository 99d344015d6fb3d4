"""Each policy that plans by measurements equals its rule, worked out anew from the same numbers."""

from __future__ import annotations

import ditcache
import numpy as np
import pytest
import torch

from ..runtime.helpers import compiled, counting, euler, grid, noise, prompt
from . import loops
from .models import STEPS, Dit, compare, denoise, replaced

SUM_TOLERANCE = 2e-5  # a weighted sum in another order
CALIBRATED = (10, 11)  # seeds of the recorded generations
KINDS = ("attention[:]", "cross-attention[:]", "mlp[:]")
REGIONS = ("blocks[:] delta", *KINDS)


@pytest.fixture(scope="module")
def model():
    return Dit()


@pytest.fixture(scope="module")
def profile(model):
    """Inner products of whole outputs, over two generations."""
    torch._dynamo.reset()
    made = compiled(model, policy="none")
    with torch.no_grad():
        found = ditcache.calibrate(
            made, lambda i: denoise(made, CALIBRATED[i]), 2, regions=REGIONS, exact=True
        )
    torch._dynamo.reset()
    return found


def numbers(profile, region):
    """[T, T] mean product of the outputs at two steps."""
    return profile.region(region).gram[0, 0]


def under(model, profile, policy, **options):
    """Results of ditcache under the profile's plan, what ran in the last generation, the plan."""
    plan = profile.plan(policy=policy, **options)
    made, results = compiled(model, plan=plan), []
    for seed in range(2):
        with counting() as ran:
            results.append(denoise(made, seed))
        ran = dict(ran)
    assert not ditcache.summary(made).fallbacks
    return results, ran, plan


def uncached(model):
    return [denoise(model, seed) for seed in range(2)]


def of_kind(model, kind):
    name = {"attention[:]": "attention", "cross-attention[:]": "cross", "mlp[:]": "mlp"}[kind]
    return [getattr(block, name) for block in model.blocks]


class Watch:
    """What modules give in eager generations, step by step, as one vector."""

    def __init__(self, modules, residual=False):
        self.modules, self.residual = modules, residual

    def trajectories(self, model):
        """[T, numbers of all calibrated generations]."""
        found = []
        for seed in CALIBRATED:
            now, steps = loops.Now(), [[] for _ in range(STEPS)]

            def see(forward, *args, now=now, steps=steps):
                made = forward(*args)
                steps[now.step].append(made)
                return made

            def enter(forward, x, *args, now=now, steps=steps):
                steps[now.step].append(-x)
                return forward(x, *args)

            pairs = [(m, see) for m in self.modules]
            pairs += [(model.blocks[0], enter)] if self.residual else []
            with replaced(*pairs):
                denoise(model, seed, now)
            rows = [sum(s)[None] if self.residual else torch.stack(s) for s in steps]
            found.append(torch.stack([r.flatten() for r in rows]))
        return torch.cat(found, 1).double().numpy()


@pytest.mark.parametrize("region", ["denoiser", *REGIONS])
def test_the_profiles_numbers_are_those_of_eager_generations(model, profile, region):
    if region == "denoiser":
        watch = Watch([model])
    elif region.endswith("delta"):
        watch = Watch([model.blocks[-1]], residual=True)
    else:
        watch = Watch(of_kind(model, region))
    seen = watch.trajectories(model)
    expected = seen @ seen.T / seen.shape[1]
    np.testing.assert_allclose(numbers(profile, region), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("threshold", "max_skips", "retention"), [(0.06, 3, 0.2), (0.2, 2, 0.1), (0.5, 5, 0.34)]
)
def test_magcache_equals_its_loop(model, profile, threshold, max_skips, retention):
    ours, ran, plan = under(
        model, profile, "magcache", threshold=threshold, max_skips=max_skips, retention=retention
    )
    magnitude = np.sqrt(np.diag(numbers(profile, "blocks[:] delta")))
    kept, computed, since = round(retention * STEPS), {0}, []
    for t in range(1, STEPS):
        since.append(magnitude[t] / magnitude[t - 1])
        # Every step skipped in a row errs by how far the product of its ratios is from one.
        error = sum(abs(1 - np.prod(since[: n + 1])) for n in range(len(since)))
        if t < kept or error > threshold or len(since) > max_skips:
            computed.add(t)
            since = []
    theirs = loops.runs(model, [(0, 4, lambda i: i in computed)])
    compare(ours, theirs, uncached(model))
    assert kept < len(computed) < STEPS, "the threshold decides nothing"
    assert ran["mlp"] == 4 * len(computed)
    assert plan.regions[0].what == "delta"


@pytest.mark.parametrize(("threshold", "max_gap"), [(0.18, 3), (0.1, 2), (0.5, 4)])
def test_smoothcache_equals_its_loop(model, profile, threshold, max_gap):
    ours, ran, _ = under(model, profile, "smoothcache", threshold=threshold, max_gap=max_gap)
    computed = {}
    for kind in KINDS:
        g, last = numbers(profile, kind), 0
        computed[kind] = {0}
        for t in range(1, STEPS):
            error = np.sqrt((g[t, t] - 2 * g[t, last] + g[last, last]) / g[t, t])
            if error >= threshold or t > last + max_gap:
                last = t
                computed[kind].add(t)
    rules = [
        (module, lambda i, steps=steps: i in steps)
        for kind, steps in computed.items()
        for module in of_kind(model, kind)
    ]
    compare(ours, loops.layers(model, rules), uncached(model))
    counts = {k: len(steps) for k, steps in computed.items()}
    assert any(1 < n < STEPS for n in counts.values()), "the threshold decides nothing"
    assert list(ran.values()) == [4 * counts[k] for k in KINDS]
    assert list(ran) == ["attention", "cross", "mlp"]


@pytest.mark.parametrize(("interval", "first", "history"), [(5, 3, 3), (3, 2, 2), (2, 1, 1)])
def test_l2p_equals_its_loop(model, profile, interval, first, history):
    ours, ran, _ = under(model, profile, "l2p", interval=interval, first=first, history=history)
    computed = [*range(first), *range(first - 1 + interval, STEPS, interval)]
    values, vectors = np.linalg.eigh(numbers(profile, "denoiser"))
    outputs = vectors * np.sqrt(np.maximum(values, 0.0))  # rows with the same inner products
    times = grid(STEPS).double().numpy()
    ridge = np.sqrt(1e-4 * values.mean())
    rows = {}
    for t in set(range(STEPS)) - {*computed}:
        before = [s for s in computed if s < t][: -history - 1 : -1]
        # Outputs smooth in time are nearly dependent: a ridge pulls to Lagrange's polynomial.
        lagrange = [
            np.prod([(times[t] - times[q]) / (times[p] - times[q]) for q in before if q != p])
            for p in before
        ]
        table = np.vstack([outputs[before].T, ridge * np.eye(len(before))])
        wanted = np.concatenate([outputs[t], ridge * np.array(lagrange)])
        rows[t] = np.linalg.lstsq(table, wanted, rcond=None)[0]
    results = []
    for seed in range(2):
        now, made = loops.Now(), []

        def step(forward, *args, now=now, made=made):
            if now.step in rows:
                return sum(float(a) * y for a, y in zip(rows[now.step], made, strict=False))
            made.insert(0, forward(*args))
            return made[0]

        with replaced((model, step)):
            results.append(denoise(model, seed, now))
    compare(ours, results, uncached(model), SUM_TOLERANCE)
    assert ran["mlp"] == 4 * len(computed)


@pytest.mark.parametrize("policy", ["fora", "firstblockcache", "magcache", "l2p"])
def test_a_plan_serves_the_resolution_that_was_recorded(model, profile, policy):
    plan = profile.plan(policy=policy)
    assert (plan.shape, plan.dtype) == ((1, 6, 16), "float32")
    made = compiled(model, plan=plan)

    def run(called, **shape):
        text = prompt(batch=shape.get("batch", 1))
        return euler(lambda x, t, _: called(x, t.expand(len(x)), text), noise(**shape), grid(STEPS))

    for shape in ({}, {"batch": 2}):
        with counting() as ran:
            run(made, **shape)
        assert ran["attention"] < 4 * STEPS
    assert not ditcache.summary(made).fallbacks
    with counting() as ran:
        ours = run(made, tokens=9)
    assert ran["attention"] == 4 * STEPS
    torch.testing.assert_close(ours, run(model, tokens=9), rtol=1e-6, atol=1e-6)
    assert set(ditcache.summary(made).fallbacks) == {"changed shape"}
