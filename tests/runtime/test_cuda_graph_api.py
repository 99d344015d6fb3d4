"""Captures through torch: what a failed one leaves behind is undone, and its cause is told."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from ditcache.runtime import cuda_graph_api, if_node
from ditcache.runtime.cuda_graph_api import CudaGraphApi


class Graph:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def capture_end(self) -> None:
        self.calls.append("capture_end")
        raise RuntimeError("operation failed due to a previous error during capture")

    def reset(self) -> None:
        self.calls.append("reset")


class Generator:
    """In capture mode until it gets another state, as torch's is after a failed capture."""

    capturing = False

    def clone_state(self) -> str:
        return "clone"

    def graphsafe_set_state(self, state: str) -> None:
        assert state == "clone"
        self.capturing = False


@pytest.fixture
def cuda(monkeypatch):
    """torch.cuda as far as captures need it; a capture that is not sound cannot be ended."""
    found = SimpleNamespace(
        stream="caller's", capturing=False, sound=True, open=[], uses=0, streams=0,
        generator=Generator(), graphs=[],
    )  # fmt: skip

    def made() -> Graph:
        found.graphs.append(Graph())
        return found.graphs[-1]

    def stream() -> str:
        found.streams += 1
        return f"side {found.streams}"

    @contextmanager
    def on(stream):
        before, found.stream = found.stream, stream
        try:
            yield
        finally:
            found.stream = before

    @contextmanager
    def graph(graph, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        if pool in found.open:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        found.stream, found.capturing, found.generator.capturing = stream, True, True
        found.open.append(pool)
        found.uses += 1
        try:
            yield
        finally:
            if not found.sound:
                raise RuntimeError("operation failed due to a previous error during capture")
            found.open.remove(pool)
            found.stream, found.capturing, found.generator.capturing = "caller's", False, False

    def end(device, pool):
        if pool not in found.open:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        found.open.remove(pool)

    def release(device, pool):
        found.uses -= 1

    patches = {
        "CUDAGraph": made,
        "Stream": stream,
        "graph": graph,
        "stream": on,
        "current_device": lambda: 0,
        "current_stream": lambda: found.stream,
        "set_stream": lambda s: setattr(found, "stream", s),
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: found.capturing and found.stream != "caller's",
        "default_generators": [found.generator],
    }
    for name, value in patches.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)
    monkeypatch.setattr(cuda_graph_api, "_abandoned", [])
    return found


def test_a_pool_is_kept_by_an_empty_graph(cuda):
    pool = CudaGraphApi().pool()
    assert (pool.handle, pool.anchor) == ((0, 1), cuda.graphs[0])
    assert cuda.uses == 1
    assert not cuda.open


def test_bodies_learn_the_pool(cuda):
    api = CudaGraphApi()
    pool = api.pool()
    graph, handle = api.capture(pool, if_node.memory.get)
    assert (graph, handle) == (cuda.graphs[-1], (0, 1))
    assert cuda.streams == 1, "one stream for all captures"


def test_a_capture_that_cannot_be_ended_leaves_nothing_behind(cuda):
    api = CudaGraphApi()
    pool = api.pool()

    def fails():
        cuda.sound = False
        torch.ones(3).mul_(2)
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError, match="no memory") as told:
        api.capture(pool, fails)
    assert "aten.mul_" in told.value.__notes__[0]
    assert cuda.stream == "caller's"
    assert not cuda.open
    assert cuda.uses == 1, "the pool's own graph"
    assert not cuda.generator.capturing
    assert cuda.graphs[-1].calls == ["capture_end", "reset"]
    cuda.sound, cuda.capturing = True, False
    _, made = api.capture(pool, lambda: 7)
    assert made == 7
    assert cuda.stream == "caller's"
    assert cuda.streams == 2, "not on a stream that may be capturing still"


def test_a_capture_that_ends_in_spite_of_an_error_is_released_by_torch(cuda):
    api = CudaGraphApi()
    pool = api.pool()

    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        api.capture(pool, fails)
    assert cuda.uses == 2, "the graph has it, and gives it up when it is reset"
    assert cuda.graphs[-1].calls == ["reset"]
