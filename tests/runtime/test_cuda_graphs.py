"""Captures: when one is made, what goes into it, and who owns what comes out."""

from __future__ import annotations

import gc

import pytest
import torch
from ditcache.runtime.capture import Input, warming
from ditcache.runtime.captured import Captured
from torch import Tensor

from .fake_graphs import KEPT, SLOT, VALUE, WEIGHT, Runs, inputs, right

pytestmark = pytest.mark.usefixtures("cpu_captures")


def test_captured_at_the_second_call_and_replayed_after_that():
    runs = Runs()
    f = runs.wrap()
    _, w, c = inputs()
    for i in range(5):
        x = torch.randn(2, 4)
        assert right(f(x, w, c), x, w, c), i
    assert (runs.stats.captures, runs.stats.replays) == (1, 4)


def test_what_comes_out_is_the_callers():
    runs = Runs()
    f, g = runs.wrap(), runs.wrap()
    a, b = inputs(), inputs()
    for h in (f, g):
        h(*a)
    kept = f(*a)
    value = kept[0][0].clone()
    g(*b)
    f(*b)
    assert torch.equal(kept[0][0], value)
    assert kept[0][0] is kept[1][0], "given out twice, copied once"
    kept[0][0].zero_()
    assert right(f(*a), *a)
    assert len(runs.api.pools) == 1, "one pool for all"


def test_each_shape_and_number_has_its_capture():
    runs = Runs()
    f = runs.wrap()
    for rows in (2, 3, 2, 3, 2, 3):
        x, w, c = inputs(rows)
        assert right(f(x, w, c), x, w, c)
    # Other weights at each call: captured anew each time.
    assert runs.stats.captures == 4
    assert runs.stats.recaptures == 2


def test_moved_weights_are_captured_anew():
    runs = Runs()
    f = runs.wrap()
    x, w, c = inputs()
    f(x, w, c)
    f(x, w, c)
    w.mul_(2)  # written in place: a replay reads it where it lies
    assert right(f(x, w, c), x, w, c)
    assert runs.stats.recaptures == 0
    moved = w.clone() * 3
    assert right(f(x, moved, c), x, moved, c)
    assert right(f(x, moved, c), x, moved, c)
    assert (runs.stats.captures, runs.stats.recaptures) == (2, 1)
    assert len(runs.api.pools[0]) == 1, "the old one is freed"


def test_captures_of_a_variant_that_is_gone_are_freed_at_the_next_capture():
    runs = Runs()
    gone, stays = runs.wrap(), runs.wrap()
    a = inputs()
    for _ in range(2):
        gone(*a)
    del gone
    gc.collect()
    for _ in range(2):
        assert right(stays(*a), *a)
    assert len(runs.api.pools[0]) == 1
    assert runs.graphs.nbytes == runs.api.size + a[0].nbytes + a[2].nbytes


def test_slots_are_read_where_they_lie():
    runs = Runs()
    f = runs.wrap((VALUE, WEIGHT, SLOT))
    x, w, cond = inputs()
    uncond = torch.randn(2, 4)
    for _ in range(3):
        for slot in (cond, uncond):
            slot.add_(1)
            assert right(f(x, w, slot), x, w, slot)
    assert (runs.stats.captures, runs.stats.recaptures) == (2, 0)


def test_an_unchanged_input_is_not_copied(monkeypatch):
    runs = Runs()
    f = runs.wrap()
    x, w, c = inputs()
    copied: list[int] = []
    copy_ = Tensor.copy_
    monkeypatch.setattr(Tensor, "copy_", lambda a, b: (copied.append(id(b)), copy_(a, b))[1])
    for _ in range(5):
        f(x, w, c)
    assert copied.count(id(c)) == 1
    assert copied.count(id(x)) == 5, "latents are copied whatever their version says"
    c.add_(1)
    assert right(f(x, w, c), x, w, c)
    assert copied.count(id(c)) == 2
    other = c.clone()
    assert right(f(x, w, other), x, w, other)
    other.data = torch.randn(2, 4)  # another storage, which counts no version
    assert right(f(x, w, other), x, w, other)


def test_the_run_before_a_capture_reads_what_the_capture_reads():
    """Kernels are compiled for where inputs lie: for static inputs, not for any slice."""
    runs, seen = Runs(), []

    def run(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
        seen.append((x.data_ptr(), w.data_ptr(), c.data_ptr(), warming.get()))
        return x

    f = Captured(run, (VALUE, WEIGHT, KEPT), "variant", runs.graphs)
    rows, w, c = torch.arange(15.0), torch.ones(3), torch.ones(3)
    made = [f(rows[i : i + 3], w, c) for i in range(3)]
    (x, *_), (again, *_) = seen[:2]
    assert x == again not in [rows[i:].data_ptr() for i in range(3)]
    assert len({row[:3] for row in seen}) == 1, "before the capture, in it, and at replays"
    assert [row[3] for row in seen] == [True, False, False, False]
    assert [m.tolist() for m in made] == [rows[i : i + 3].tolist() for i in range(3)]


def test_inference_tensors_are_always_copied():
    runs = Runs()
    f = runs.wrap()
    with torch.inference_mode():
        x, w, c = inputs()
        for _ in range(4):
            c.add_(1)
            assert right(f(x, w, c), x, w, c)


def test_expanded_inputs_keep_their_layout():
    one = torch.randn(1, 3, 1).expand(2, 3, 5)
    buffer = Input.like(one)
    assert (buffer.whole.shape, buffer.whole.stride()) == (one.shape, one.stride())
    buffer.take(one, kept=False)
    assert torch.equal(buffer.whole, one)
    turned = torch.randn(4, 5).t()
    buffer = Input.like(turned)
    buffer.take(turned, kept=False)
    assert buffer.whole.stride() == turned.stride()
    assert torch.equal(buffer.whole, turned)


def test_another_stream_waits_for_the_one_before():
    runs = Runs()
    f, args = runs.wrap(), inputs()
    for _ in range(3):
        f(*args)
    runs.api.current = "stream 1"
    assert right(f(*args), *args)
    f(*args)
    assert runs.api.followed == [("stream 0", "stream 1")]
    assert runs.api.lent == [("stream 1", 2)], "x and c: their memory was made on the other one"
