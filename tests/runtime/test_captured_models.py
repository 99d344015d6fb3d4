"""Whole models whose variants are captured: by a graph API of the tests, and on a device."""

from __future__ import annotations

import ditcache
import pytest
import torch
from ditcache.runtime import captured, session
from ditcache.runtime.cuda_graphs import Graphs
from ditcache.runtime.slots import SlotSet

from .fake_graphs import FakeApi
from .helpers import Denoiser, compiled, first, generate, make_plan, noise, prompt


@pytest.fixture
def captured_model(monkeypatch):
    api = FakeApi()
    monkeypatch.setattr(captured, "DEVICES", frozenset({"cpu"}))
    monkeypatch.setattr(session, "graphs_for", lambda c, stats: Graphs(api, stats, c.graph_budget))
    model = Denoiser()
    made = compiled(model, policy="none", cuda_graphs=True)
    made(noise(), torch.ones(1), prompt())
    ditcache.apply(made, make_plan(made))
    return made, api


def test_a_planned_model_replays_and_gives_the_same(captured_model, monkeypatch):
    made, _ = captured_model
    images = [generate(made, seed) for seed in (1, 2, 3)]
    monkeypatch.undo()
    plain = compiled(Denoiser(), policy="none")
    plain(noise(), torch.ones(1), prompt())
    ditcache.apply(plain, make_plan(plain))
    assert all(torch.equal(a, generate(plain, seed)) for seed, a in enumerate(images, 1))
    summary = ditcache.summary(made)
    assert summary.captures >= 1
    assert summary.replays >= 3 * 5 - 2 - summary.captures
    assert summary.graph_bytes > 0
    assert "CUDA graphs" in str(summary)
    assert not summary.uncaptured
    assert not summary.fallbacks


def test_a_capture_that_fails_changes_no_image(captured_model):
    made, api = captured_model
    api.fail = [RuntimeError("no")] * 8
    images = [generate(made, 1), generate(made, 1)]
    assert torch.equal(*images)
    assert ditcache.summary(made).captures == 0
    assert ditcache.summary(made).uncaptured["a capture failed"] >= 1
    assert "not captured" in str(ditcache.summary(made))


def test_captures_go_before_slots_do(captured_model, monkeypatch):
    made, api = captured_model
    wanted = [generate(made, 1), generate(made, 2)]
    held = ditcache.summary(made)
    assert held.graph_bytes > 0
    assert held.extra_bytes == held.slot_bytes + held.hoisted_bytes + held.graph_bytes
    assert 0 < held.slot_bytes <= held.most_slot_bytes
    push, failed = SlotSet.push, []

    def once(self, *args, **kwargs):
        if not failed:
            failed.append(api.releases)
            raise torch.OutOfMemoryError("CUDA out of memory")
        push(self, *args, **kwargs)

    monkeypatch.setattr(SlotSet, "push", once)
    assert torch.equal(generate(made, 1), wanted[0])
    assert api.releases > failed[0], "captures were freed"
    assert not ditcache.summary(made).fallbacks


def on_gpu(model):
    return lambda x, t, c: first(model(x.cuda(), t.cuda(), c.cuda())).cpu()


@pytest.mark.gpu
def test_replay_equals_eager_on_a_gpu():
    images = {}
    for graphs in (False, True):
        torch._dynamo.reset()
        made = compiled(Denoiser().cuda(), policy="none", cuda_graphs=graphs)
        made(noise().cuda(), torch.ones(1, device="cuda"), prompt().cuda())
        ditcache.apply(made, make_plan(made))
        images[graphs] = [generate(on_gpu(made), seed) for seed in (1, 2, 3)]
        summary = ditcache.summary(made)
        assert bool(summary.replays) == graphs
        assert not summary.uncaptured
    assert all(torch.equal(a, b) for a, b in zip(images[True], images[False], strict=True))


@pytest.mark.gpu
def test_no_allocation_in_the_steady_loop():
    made = compiled(Denoiser().cuda(), policy="none", cuda_graphs=True)
    made(noise().cuda(), torch.ones(1, device="cuda"), prompt().cuda())
    ditcache.apply(made, make_plan(made))
    for seed in (1, 2):
        generate(on_gpu(made), seed)
    before = torch.cuda.memory_stats()["num_device_alloc"]
    generate(on_gpu(made), 3)
    assert torch.cuda.memory_stats()["num_device_alloc"] == before
