"""Slots on the host: fetched in time, ahead where the order is known, within a budget of bytes."""

from __future__ import annotations

import gc

import ditcache
import pytest
import torch
from ditcache.kernels.formats import FORMATS
from ditcache.runtime import offload
from ditcache.runtime.offload import Offload, Offloaded, Stage
from ditcache.runtime.slots import Ring
from torch import Tensor

from .helpers import Denoiser, compiled, generate, make_plan, noise, prompt


class LateLane:
    """Copies that happen when they are waited for, and not before; in their order."""

    def __init__(self, _: torch.device | None = None) -> None:
        self.queue: list[tuple[Tensor, Tensor]] = []
        self.done = 0

    def pinned(self, shape, dtype):
        return torch.zeros(tuple(shape), dtype=dtype)

    def copy(self, target: Tensor, source: Tensor) -> int:
        self.queue.append((target, source))
        return len(self.queue)

    def wait(self, event: int) -> None:
        while self.done < event:
            target, source = self.queue[self.done]
            target.copy_(source)
            self.done += 1


@pytest.fixture
def stage(monkeypatch):
    monkeypatch.setattr(offload, "DEVICES", frozenset({"cpu"}))
    return Stage(torch.device("cpu"), LateLane())


def ring_of(stage: Stage, entries: Tensor, kind=None) -> Offloaded:
    ring = Offloaded(entries[0], len(entries), kind, stage)
    for i, value in enumerate(entries):
        ring.put(i, value)
    return ring


def test_what_was_written_is_fetched(stage):
    entries = torch.randn(3, 4, 5)
    ring = ring_of(stage, entries)
    assert torch.equal(ring.fetch(), entries)
    ring.put(1, torch.ones(4, 5))
    assert torch.equal(ring.fetch()[1], torch.ones(4, 5)), "what was fetched before is not taken"
    assert torch.equal(ring.entry(2), entries[2])


@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_ring_is_that_of_a_device(stage, name: str):
    entries = torch.randn(2, 7, 130)
    kind = FORMATS[name]
    ring, plain = ring_of(stage, entries, kind), Ring(entries[0], 2, kind)
    for i, value in enumerate(entries):
        plain.push(i, value)
    assert torch.equal(ring.entry(1), plain.entry(0))
    assert ring.nbytes == plain.nbytes


def test_the_next_one_is_fetched_while_one_is_read(stage):
    values = [torch.randn(2, 9) for _ in range(3)]
    rings = [ring_of(stage, v) for v in values]
    lane = stage.lane
    for _ in range(2):
        for ring in rings:
            ring.fetch()
    for ring, value, follower in zip(rings, values, [*rings[1:], rings[0]], strict=True):
        before = len(lane.queue)
        got = ring.fetch()
        assert len(lane.queue) == before + 1, "that one, and nothing else: this one was there"
        assert torch.equal(lane.queue[-1][1], follower.parts[0])
        assert torch.equal(got, value)
    assert stage.nbytes == 2 * offload.ALIGNED, "two at a time"


def test_what_is_written_after_it_was_fetched_ahead_is_fetched_again(stage):
    a, b = (ring_of(stage, torch.randn(2, 9)) for _ in range(2))
    for ring in (a, b, a):
        ring.fetch()
    b.put(0, torch.full((9,), 3.0))
    assert torch.equal(b.fetch()[0], torch.full((9,), 3.0))


def test_a_larger_ring_gets_more_room_and_a_dead_one_is_forgotten(stage):
    small, large = ring_of(stage, torch.randn(1, 3)), ring_of(stage, torch.randn(4, 300))
    for ring in (small, large, small, large):
        ring.fetch()
    expected = large.fetch().clone()
    del small
    gc.collect()
    assert torch.equal(large.fetch(), expected)


def test_slots_beyond_the_budget_go_to_the_host(monkeypatch):
    monkeypatch.setattr(offload, "DEVICES", frozenset({"cpu"}))
    held, value = [0], torch.randn(10)
    chooser = Offload(100, lambda: held[0], LateLane)
    assert chooser.stage_for(value, 2, None) is None
    held[0] = 40
    assert chooser.stage_for(value, 2, None) is not None
    assert chooser.stage_for(value, 2, FORMATS["fp16"]) is None
    monkeypatch.undo()
    assert chooser.stage_for(value, 9, None) is None, "a CPU has one memory"


@pytest.mark.parametrize("kind", [None, "int8"])
@pytest.mark.parametrize("region", ["denoiser", "blocks[:]"])
def test_offloaded_slots_change_no_bit(monkeypatch, kind, region: str):
    monkeypatch.setattr(offload, "DEVICES", frozenset({"cpu"}))
    monkeypatch.setattr(offload.Offload.__init__, "__defaults__", (LateLane,))
    images, held = {}, {}
    for bound in (None, 0):
        torch._dynamo.reset()
        made = compiled(Denoiser(), policy="none", slot_format=kind, offload_beyond=bound)
        made(noise(), torch.ones(1), prompt())
        plan = make_plan(made)
        first = ditcache.RegionSchedule(
            region, plan.regions[0].computed, plan.regions[0].weights, 2, "by hand", "by hand"
        )
        ditcache.apply(made, ditcache.Plan(plan.signature, plan.timesteps, (first,), "edf"))
        images[bound] = [generate(made, seed) for seed in (1, 2)]
        summary = ditcache.summary(made)
        assert not summary.fallbacks
        assert bool(summary.offloaded_bytes) == (bound == 0)
        assert ("more on the host" in str(summary)) == (bound == 0)
        held[bound] = summary.most_slot_bytes, summary.offloaded_bytes
    assert held[0] == held[None][::-1]
    assert all(torch.equal(a, b) for a, b in zip(images[None], images[0], strict=True))


def test_a_bad_budget_is_refused():
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="offload_beyond"):
        generate(compiled(Denoiser(), offload_beyond=-1))


@pytest.mark.gpu
def test_images_are_the_same_on_a_gpu():
    images = {}
    for bound in (None, 0):
        torch._dynamo.reset()
        made = compiled(Denoiser().cuda(), policy="none", offload_beyond=bound)
        made(noise().cuda(), torch.ones(1, device="cuda"), prompt().cuda())
        ditcache.apply(made, make_plan(made))
        on = lambda x, t, c, made=made: made(x.cuda(), t.cuda(), c.cuda())[0].cpu()  # noqa: E731
        images[bound] = [generate(on, seed) for seed in (1, 2, 3)]
        assert bool(ditcache.summary(made).offloaded_bytes) == (bound == 0)
    assert all(torch.equal(a, b) for a, b in zip(images[None], images[0], strict=True))
