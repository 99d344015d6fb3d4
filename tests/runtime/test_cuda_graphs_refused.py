"""Captures that fail, find no memory or do not pay: the variant runs without."""

from __future__ import annotations

import pytest
import torch
from ditcache.runtime import captured
from ditcache.runtime.capture import Input
from ditcache.runtime.captured import Captured

from .fake_graphs import VALUE, WEIGHT, FakeApi, Runs, inputs, right

pytestmark = pytest.mark.usefixtures("cpu_captures")


def test_weights_that_always_move_are_given_up(caplog):
    runs = Runs()
    f = runs.wrap()
    x, w, c = inputs()
    keep = []
    for _ in range(20):
        keep.append(w := w.clone())
        assert right(f(x, w, c), x, w, c)
    assert runs.stats.captures == captured.TRIED
    assert runs.stats.uncaptured["inputs that keep changing"] == 1
    assert any("keep moving" in r.message for r in caplog.records)


def test_without_memory_for_static_inputs_it_runs_on(monkeypatch):
    runs = Runs()

    def fails(value):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Input, "like", fails)
    f, args = runs.wrap(), inputs()
    for _ in range(3):
        assert right(f(*args), *args)
    assert runs.stats.uncaptured == {"no memory for a CUDA graph": 1}


def test_a_capture_that_fails_names_the_op_and_runs_on(caplog):
    failure = RuntimeError("operation not permitted when stream is capturing\nmore")
    failure.add_note("The last op was aten.nonzero.default.")
    runs = Runs()
    runs.api.fail = [failure]
    f = runs.wrap(name="variant whole cf")
    for _ in range(4):
        args = inputs()
        assert right(f(*args), *args)
    assert runs.stats.uncaptured == {"a capture failed": 1}
    said = " ".join(r.message for r in caplog.records)
    assert "variant whole cf" in said
    assert "aten.nonzero" in said
    assert "not permitted" in said


def test_without_a_pool_it_runs_on(monkeypatch):
    """A pool has a capture of its own, which may fail as any other."""

    def fails():
        raise RuntimeError("no pool")

    runs = Runs()
    monkeypatch.setattr(runs.api, "pool", fails)
    f = runs.wrap()
    for _ in range(3):
        args = inputs()
        assert right(f(*args), *args)
    assert runs.stats.uncaptured == {"a capture failed": 1}


def test_out_of_memory_frees_the_others_then_gives_up():
    runs = Runs()
    f, g, h = (runs.wrap() for _ in range(3))
    args = inputs()
    for each in (f, f, g):
        each(*args)
    runs.api.fail = [torch.OutOfMemoryError("CUDA out of memory")]
    assert right(g(*args), *args)
    assert runs.stats.captures == 2
    assert [len(p) for p in runs.api.pools] == [0, 1]
    assert not runs.stats.uncaptured
    assert right(f(*args), *args), "captured again, it is warm"
    assert runs.stats.captures == 3
    h(*args)
    runs.api.fail = [torch.OutOfMemoryError("one"), torch.OutOfMemoryError("two")]
    assert right(h(*args), *args)
    assert runs.stats.uncaptured == {"no memory for a CUDA graph": 1}


def test_the_least_used_go_beyond_the_budget():
    runs = Runs(FakeApi(size=1000), budget=2500)
    args = inputs()
    a, b, c = (runs.wrap() for _ in range(3))
    for each in (a, a, b, b, a, c, c):
        assert right(each(*args), *args)
    own = sum(t.nbytes for t in (args[0], args[2]))
    assert runs.graphs.nbytes == 2 * (1000 + own)
    before = runs.stats.captures
    assert right(a(*args), *args)
    assert runs.stats.captures == before
    assert right(b(*args), *args)
    assert runs.stats.captures == before + 1, "b went, as the one used longest ago"


def test_weights_elsewhere_are_refused(caplog):
    """Their kernels would run at the capture alone."""
    runs = Runs()
    f = Captured(lambda *_: 7, (VALUE, WEIGHT), "variant", runs.graphs)
    for _ in range(3):
        assert f(torch.ones(2), torch.ones(2, device="meta")) == 7
    assert runs.stats.captures == 0
    assert runs.stats.uncaptured == {"weights on another device": 1}
    assert "meta" in caplog.text


@pytest.mark.parametrize("devices", [{"cuda"}, {"cpu", "meta"}])
def test_inputs_elsewhere_are_refused(monkeypatch, devices, caplog):
    monkeypatch.setattr(captured, "DEVICES", frozenset(devices))
    runs = Runs()
    f = Captured(lambda *_: 7, (VALUE, VALUE), "variant", runs.graphs)
    there = torch.ones(2, device="meta")
    assert [f(torch.ones(2), there) for _ in range(3)] == [7, 7, 7]
    assert runs.stats.captures == 0
    assert sum(runs.stats.uncaptured.values()) == 1
    assert any("meta" in r.message or "cpu" in r.message for r in caplog.records)
