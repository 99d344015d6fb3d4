"""CUDA graphs as torch has them, behind the protocol of `cuda_graphs.py`."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import if_node
from .config import Config
from .cuda_graphs import Graphs
from .stats import Stats

_capturing = threading.Lock()  # one capture at a time in a process
_abandoned: list[torch.cuda.CUDAGraph] = []  # the allocator may still ask them for their streams


@dataclass(frozen=True)
class Pool:
    """A memory pool, and an empty graph: a pool whose last graph was freed takes no other one."""

    handle: Any
    anchor: torch.cuda.CUDAGraph


class _LastOp(TorchDispatchMode):
    """Remembers the op that was called last: the one at which a capture failed."""

    def __init__(self) -> None:
        super().__init__()
        self.name = ""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.name = str(func)
        return func(*args, **(kwargs or {}))


class CudaGraphApi:
    """The real thing. Captures on a side stream; other threads may go on allocating meanwhile."""

    def __init__(self) -> None:
        self._sides: dict[int, torch.cuda.Stream] = {}  # by device

    def capture(self, pool: Any, run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        """Capture what `run` queues; raises what it raises, with the last op in a note."""
        graph, last = torch.cuda.CUDAGraph(), _LastOp()
        here, before = torch.cuda.current_device(), torch.cuda.current_stream()
        raised: list[BaseException] = []
        token = if_node.memory.set(pool.handle)
        try:
            with _capturing, self._into(graph, pool.handle), last:
                try:
                    outputs = run()
                except BaseException as failed:
                    raised.append(failed)
                    raise
        except BaseException as failed:
            torch.cuda.set_stream(before)  # a capture that fails to end leaves its own
            self._abandon(graph, here, pool.handle)
            # Ending a capture that went wrong fails too, and hides what went wrong.
            why = raised[0] if raised else failed
            why.add_note(f"The last op was {last.name or 'a compiled kernel'}.")
            raise why from None
        finally:
            if_node.memory.reset(token)
        return graph, outputs

    def pool(self) -> Pool:
        """A new memory pool."""
        handle, anchor = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the graph is empty
            with _capturing, self._into(anchor, handle):
                pass
        return Pool(handle, anchor)

    def _into(self, graph: torch.cuda.CUDAGraph, handle: Any) -> AbstractContextManager[Any]:
        here = torch.cuda.current_device()
        side = self._sides.get(here) or self._sides.setdefault(here, torch.cuda.Stream())
        return torch.cuda.graph(graph, pool=handle, stream=side, capture_error_mode="thread_local")

    def _abandon(self, graph: torch.cuda.CUDAGraph, device: int, handle: Any) -> None:
        """Undo what a capture that failed has begun.

        torch leaves that as it is where `cudaStreamEndCapture` reports an error: the stream, the
        routing of memory to the pool, and the state of the random generator. Then no cache could be
        emptied, nothing captured into this pool and no noise drawn any more.
        """
        side = self._sides.pop(device, None)
        with suppress(RuntimeError), torch.cuda.stream(side):
            if torch.cuda.is_current_stream_capturing():
                graph.capture_end()
        with suppress(RuntimeError):
            graph.reset()
        with suppress(RuntimeError):  # where there is nothing to end, there is none to release
            torch._C._cuda_endAllocateToPool(device, handle)
            torch._C._cuda_releasePool(device, handle)
        generator = torch.cuda.default_generators[device]
        with suppress(RuntimeError):
            generator.graphsafe_set_state(generator.clone_state())
        _abandoned.append(graph)

    def on(self, device: torch.device) -> AbstractContextManager[Any]:
        """Make `device` the current one."""
        return torch.cuda.device(device)

    def stream(self) -> torch.cuda.Stream:
        """The current stream."""
        return torch.cuda.current_stream()

    def follow(self, before: torch.cuda.Stream) -> None:
        """Let the current stream wait for `before`."""
        torch.cuda.current_stream().wait_stream(before)

    def lend(self, memory: Sequence[Tensor]) -> None:
        """Let memory of another stream be used on the current one until its work is done."""
        for part in memory:
            part.record_stream(torch.cuda.current_stream())

    def held(self) -> int:
        """Bytes reserved by the caching allocator."""
        return torch.cuda.memory_reserved()

    def release(self) -> None:
        """Empty the allocator's cache."""
        torch.cuda.empty_cache()


def graphs_for(config: Config, stats: Stats) -> Graphs | None:
    """The captures of a model, None where its options want none."""
    return Graphs(CudaGraphApi(), stats, config.graph_budget) if config.cuda_graphs else None
