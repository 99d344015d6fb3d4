"""Conditional nodes through cuda.bindings, against a driver that only writes down its calls."""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from enum import IntEnum
from types import ModuleType, SimpleNamespace

import pytest
import torch
from ditcache.runtime import if_node
from ditcache.runtime.branches import branch, rehearsal
from ditcache.runtime.capture import rehearsing

Result = IntEnum("Result", {"OK": 0, "INVALID": 1})


class Graph(list):
    """Nodes as they were added: (what, what it comes after)."""


class Driver(ModuleType):
    """The driver's graph calls; `streams`: the graph that each captures, and its last nodes."""

    CUgraphNodeType = SimpleNamespace(CU_GRAPH_NODE_TYPE_CONDITIONAL="conditional")
    CUgraphConditionalNodeType = SimpleNamespace(CU_GRAPH_COND_TYPE_IF="if")
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread")
    CUstreamUpdateCaptureDependencies_flags = SimpleNamespace(CU_STREAM_SET_CAPTURE_DEPENDENCIES=1)

    def __init__(self, fail: str = "") -> None:
        super().__init__("cuda.bindings.driver")
        self.fail = fail
        self.outer = Graph()
        self.streams = {7: (self.outer, [])}

    def _ok(self, name, *values):
        return (Result.INVALID if name == self.fail else Result.OK, *values)

    def add(self, stream, what):
        graph, last = self.streams[stream]
        graph.append((what, list(last)))
        self.streams[stream] = (graph, [what])

    def CUgraphNodeParams(self):
        return SimpleNamespace(conditional=SimpleNamespace(phGraph_out=None))

    def cuCtxGetCurrent(self):
        return self._ok("context", "context")

    def cuStreamGetCaptureInfo(self, stream):
        graph, last = self.streams[stream]
        return self._ok("info", "active", 1, graph, list(last), [None] * len(last), len(last))

    def cuGraphConditionalHandleCreate(self, graph, context, default, flags):
        assert graph is self.outer
        assert (context, default, flags) == ("context", 0, 0)
        return self._ok("handle", 1 << 40)

    def cuLaunchKernel(self, kernel, *rest):
        *shape, stream, (values, types), extra = rest
        assert (kernel, shape, extra) == ("hand_over", [1, 1, 1, 1, 1, 1, 0], 0)
        assert [t(v).value for t, v in zip(types, values, strict=True)] == [1 << 40, 1234]
        self.add(stream, "hand_over")
        return self._ok("launch")

    def cuGraphAddNode(self, graph, before, edges, count, wanted):
        assert (wanted.type, wanted.conditional.type) == ("conditional", "if")
        assert (wanted.conditional.size, wanted.conditional.handle) == (1, 1 << 40)
        assert wanted.conditional.ctx == "context"
        assert edges is None
        assert count == len(before)
        body = Graph()
        wanted.conditional.phGraph_out = [body]
        graph.append((("if", body), before))
        return self._ok("node", "the node")

    def cuStreamUpdateCaptureDependencies(self, stream, nodes, edges, count, flags):
        assert (nodes, edges, count, flags) == (["the node"], None, 1, 1)
        self.streams[stream] = (self.streams[stream][0], nodes)
        return self._ok("update")

    def cuStreamBeginCaptureToGraph(self, stream, graph, *rest):
        assert stream not in self.streams
        assert rest == (None, None, 0, "thread")
        self.streams[stream] = (graph, [])
        return self._ok("begin")

    def cuStreamEndCapture(self, stream):
        return self._ok("end", self.streams.pop(stream)[0])


class Flag:
    """One int32 on a device that is none."""

    is_cuda = True
    device = torch.device("cuda", 0)

    def __init__(self, value: int = 1) -> None:
        self.value = value

    def data_ptr(self) -> int:
        return 1234

    def item(self) -> int:
        return self.value


@pytest.fixture
def cuda(monkeypatch):
    """torch.cuda as far as a node needs it, and the calls that came."""
    found = SimpleNamespace(driver=Driver(), stream=7, memory=[])

    @contextmanager
    def on(stream):
        before, found.stream = found.stream, stream.cuda_stream
        yield
        found.stream = before

    patches = {
        "is_current_stream_capturing": lambda: True,
        "current_stream": lambda _=None: SimpleNamespace(cuda_stream=found.stream),
        "stream": on,
    }
    for name, value in patches.items():
        monkeypatch.setattr(torch.cuda, name, value)
    # A torch from 2.12 on that is built for CUDA has nodes of its own.
    monkeypatch.setattr(if_node, "in_torch", lambda: False)
    for name in ("endAllocateToPool", "beginAllocateCurrentThreadToPool", "releasePool"):
        monkeypatch.setattr(
            torch._C,
            f"_cuda_{name}",
            lambda *at, name=name: found.memory.append((name, *at)),
            raising=False,
        )
    token = if_node.memory.set("the pool")
    monkeypatch.setattr(if_node, "hand_over", lambda _: "hand_over")
    monkeypatch.setattr(if_node, "body_stream", lambda _: SimpleNamespace(cuda_stream=9))
    monkeypatch.setattr(if_node, "missing", lambda: None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", found.driver)
    yield found
    if_node.memory.reset(token)


def test_the_body_is_captured_behind_what_was_and_before_what_follows(cuda):
    driver = cuda.driver
    driver.add(7, "head")
    taken = []

    def made():
        assert [name for name, *_ in cuda.memory] == [
            "endAllocateToPool",
            "beginAllocateCurrentThreadToPool",
            "releasePool",
        ], "memory of the body is the pool's"
        assert all(at == [0, "the pool"] for _, *at in cuda.memory)
        driver.add(cuda.stream, "body")
        return "value"

    def take(value):
        driver.add(cuda.stream, "copy")
        taken.append(value)

    branch(Flag(), made, take)
    driver.add(7, "tail")
    head, hand_over, (node, after), tail = driver.outer
    assert (head, hand_over) == (("head", []), ("hand_over", ["head"]))
    assert after == ["hand_over"]
    assert node[1] == [("body", []), ("copy", ["body"])]
    assert tail == ("tail", ["the node"])
    assert list(driver.streams) == [7], "the body's capture has ended"
    assert taken == ["value"]


@pytest.mark.parametrize("call", ["context", "info", "handle", "launch", "node", "update", "begin"])
def test_a_call_that_fails_is_an_error(cuda, call: str):
    cuda.driver.fail = call
    with pytest.raises(RuntimeError, match="INVALID"):
        branch(Flag(), lambda: None, lambda _: None)


@pytest.mark.parametrize("end", ["", "end"])
def test_a_body_that_fails_ends_its_capture(cuda, end: str):
    """Which fails too, as a rule; the cause is told."""
    cuda.driver.fail = end

    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        branch(Flag(), fails, lambda _: None)
    assert list(cuda.driver.streams) == [7]


@pytest.mark.parametrize("sound", [True, False])
def test_through_torch_the_cause_is_told_too(cuda, monkeypatch, sound: bool):
    calls: list[str] = []

    class Capturing:
        @staticmethod
        def get_currently_capturing_graph():
            return Capturing()

        def begin_capture_to_if_node(self, flag):
            calls.append(f"begin {flag.dtype} {list(flag.shape)}")

        def end_capture_to_conditional_node(self):
            calls.append("end")
            if not sound:
                raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(if_node, "in_torch", lambda: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Capturing)
    flag = torch.ones(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="no"), if_node.if_node(flag):
        raise ValueError("no")
    assert calls == ["begin torch.bool []", "end"]
    if sound:
        with if_node.if_node(flag):
            calls.append("body")
        assert calls[2:] == ["begin torch.bool []", "body", "end"]
    else:
        with pytest.raises(RuntimeError, match="previous error"), if_node.if_node(flag):
            calls.append("body")


@pytest.mark.parametrize("flag", [0, 1])
@pytest.mark.parametrize("before_a_capture", [False, True])
def test_outside_of_a_capture_the_host_branches(cuda, monkeypatch, flag, before_a_capture):
    """Before a capture the body runs in either case, else only where it is to."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    made, taken = [], []

    def step():
        branch(Flag(flag), lambda: made.append(rehearsal.get()), taken.append)

    with rehearsing() if before_a_capture else nullcontext():
        step()
    assert made == [False] * flag + [True] * (before_a_capture and not flag)
    assert len(taken) == flag
    assert not rehearsal.get()


@pytest.mark.parametrize(("version", "there"), [("13.0.1", True), ("12.9.2", False), (None, False)])
def test_older_bindings_or_none_are_said_to_be_missing(monkeypatch, version, there):
    def found(_):
        if version is None:
            raise if_node.importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(if_node, "in_torch", lambda: False)
    monkeypatch.setattr(if_node.importlib.metadata, "version", found)
    why = if_node.missing.__wrapped__()
    assert (why is None) == there
    if why:
        assert (version or "no cuda-bindings") in why


def test_the_real_bindings_have_what_is_called():
    """Where they are installed: the kernel compiles without a device, and the names exist."""
    driver = pytest.importorskip("cuda.bindings.driver")
    try:
        text = if_node.compiled("90")
    except Exception as missing:
        pytest.skip(f"no NVRTC: {missing}")
    assert b".visible .entry hand_over" in text
    assert b"cudaGraphSetConditional" in text
    wanted = driver.CUgraphNodeParams()
    wanted.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
    wanted.conditional.handle = driver.CUgraphConditionalHandle(1 << 40)
    wanted.conditional.type = driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_IF
    wanted.conditional.size = 1
    assert int(wanted.conditional.handle) == 1 << 40
    assert len(wanted.conditional.phGraph_out) == 1
    flags = driver.CUstreamUpdateCaptureDependencies_flags
    assert int(flags.CU_STREAM_SET_CAPTURE_DEPENDENCIES) == 1
    names = [n for n in dir(Driver) if n.startswith("cu")]
    assert len(names) == 8
    assert all(
        hasattr(driver, name) for name in (*names, "cuModuleLoadData", "cuModuleGetFunction")
    )
