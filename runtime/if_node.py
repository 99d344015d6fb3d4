"""A conditional IF node: work in a CUDA graph that runs where a flag on the device is set.

From 2.12 on torch captures such nodes itself. Before, the capture at hand is taken further through
`cuda.bindings`, which torch's wheels for CUDA 13 bring along: a kernel hands the flag to the graph,
the node is put behind what was captured so far, and the body is captured, from a stream of its own,
into the graph that the node holds.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEAST_BINDINGS = 13
MISSING = (
    "conditional nodes in CUDA graphs need torch 2.12, or cuda-bindings 13; here are torch {} and "
    "{}: each decision is made on the host, which waits for the device"
)
HAND_OVER = b"""
extern "C" __device__ __cudart_builtin__ void cudaGraphSetConditional(
    unsigned long long handle, unsigned int value);
extern "C" __global__ void hand_over(unsigned long long handle, const int *flag) {
    cudaGraphSetConditional(handle, *flag != 0);
}
"""

# The handle of the memory pool that is captured into.
memory: ContextVar[Any] = ContextVar("ditcache_if_memory")


def in_torch() -> bool:
    """Whether torch captures conditional nodes itself."""
    return hasattr(torch.cuda.CUDAGraph, "begin_capture_to_if_node")


@functools.cache
def missing() -> str | None:
    """Why there are no conditional nodes, in one line; None where there are."""
    if in_torch():
        return None
    try:
        found = importlib.metadata.version("cuda-bindings")
    except importlib.metadata.PackageNotFoundError:
        return MISSING.format(torch.__version__, "no cuda-bindings")
    if int(found.split(".")[0]) < LEAST_BINDINGS:
        return MISSING.format(torch.__version__, f"cuda-bindings {found}")
    return None


def prepare(device: torch.device) -> None:
    """Load what a node needs, before a capture: nothing may be loaded in one."""
    if not in_torch():
        hand_over(device.index)
        body_stream(device.index)


@contextmanager
def if_node(flag: Tensor) -> Generator[None]:
    """Capture what is queued inside into a node that runs where `flag`, i32[1], is not 0.

    Random numbers may not be drawn inside. Raises what the capture raises.
    """
    if in_torch():
        kind: Any = torch.cuda.CUDAGraph
        graph = kind.get_currently_capturing_graph()
        graph.begin_capture_to_if_node(flag.bool().reshape(()))
        with _ended_by(graph.end_capture_to_conditional_node):
            yield
        return
    driver = _bindings("driver")
    inside = _node(flag)
    stream = body_stream(flag.device.index)
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    called(driver.cuStreamBeginCaptureToGraph(stream.cuda_stream, inside, None, None, 0, mode))
    with _ended_by(lambda: called(driver.cuStreamEndCapture(stream.cuda_stream))):
        _share_memory(flag.device.index, memory.get())
        with torch.cuda.stream(stream):
            yield


@contextmanager
def _ended_by(end: Callable[[], Any]) -> Generator[None]:
    """Around a body's capture. What went wrong in it is told, not that it cannot be ended then."""
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):
            end()
        raise
    end()


def _share_memory(device: int, pool: Any) -> None:
    """Give the pool to all streams of this thread, until the capture ends its use.

    torch gives it to the stream of the capture alone, and the body has another one.
    """
    torch._C._cuda_endAllocateToPool(device, pool)
    torch._C._cuda_beginAllocateCurrentThreadToPool(device, pool)
    torch._C._cuda_releasePool(device, pool)  # begun twice, and the graph releases it once


def _node(flag: Tensor) -> Any:
    """Put an IF node behind what the current stream has captured; gives the graph of its body."""
    driver = _bindings("driver")
    stream = torch.cuda.current_stream(flag.device).cuda_stream
    context = called(driver.cuCtxGetCurrent())
    _, _, graph, *_ = called(driver.cuStreamGetCaptureInfo(stream))
    handle = called(driver.cuGraphConditionalHandleCreate(graph, context, 0, 0))
    given = ((int(handle), flag.data_ptr()), (ctypes.c_uint64, ctypes.c_void_p))
    kernel = hand_over(flag.device.index)
    called(driver.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream, given, 0))

    wanted = driver.CUgraphNodeParams()
    wanted.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
    wanted.conditional.handle = handle
    wanted.conditional.type = driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_IF
    wanted.conditional.size = 1
    wanted.conditional.ctx = context
    _, _, graph, before, *_ = called(driver.cuStreamGetCaptureInfo(stream))
    node = called(driver.cuGraphAddNode(graph, before, None, len(before), wanted))
    after = driver.CUstreamUpdateCaptureDependencies_flags.CU_STREAM_SET_CAPTURE_DEPENDENCIES
    called(driver.cuStreamUpdateCaptureDependencies(stream, [node], None, 1, int(after)))
    return wanted.conditional.phGraph_out[0]


@functools.cache
def hand_over(device: int) -> Any:
    """The kernel that hands a flag to a graph, loaded on one device."""
    driver = _bindings("driver")
    text = np.frombuffer(compiled("{}{}".format(*torch.cuda.get_device_capability(device))), "u1")
    with torch.cuda.device(device):
        module = called(driver.cuModuleLoadData(text.ctypes.data))
    return called(driver.cuModuleGetFunction(module, b"hand_over"))


def compiled(capability: str) -> bytes:
    """The kernel in PTX, which the driver compiles further."""
    nvrtc = _bindings("nvrtc")
    program = called(nvrtc.nvrtcCreateProgram(HAND_OVER, b"if_node.cu", 0, [], []))
    target = f"--gpu-architecture=compute_{capability}".encode()
    called(nvrtc.nvrtcCompileProgram(program, 1, [target]))
    text = b" " * called(nvrtc.nvrtcGetPTXSize(program))
    called(nvrtc.nvrtcGetPTX(program, text))  # writes into it
    return text


@functools.cache
def body_stream(device: int) -> torch.cuda.Stream:
    """The stream from which bodies are captured."""
    return torch.cuda.Stream(device)


def called(result: Any) -> Any:
    """What a call of `cuda.bindings` gives; raises RuntimeError with the error that it reports."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"{status.name} from {type(status).__name__}, at a conditional node")
    return values[0] if len(values) == 1 else values


def _bindings(name: str) -> Any:
    return importlib.import_module(f"cuda.bindings.{name}")
