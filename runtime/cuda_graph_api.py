"""CUDA graphs as torch has them, behind the protocol of `cuda_graphs.py`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import if_node
from .config import Config
from .cuda_graphs import Graphs
from .stats import Stats

_capturing = threading.Lock()  # one capture at a time in a process


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
        here = torch.cuda.current_device()
        side = self._sides.get(here) or self._sides.setdefault(here, torch.cuda.Stream())
        capturing = torch.cuda.graph(
            graph, pool=pool, stream=side, capture_error_mode="thread_local"
        )
        before = torch.cuda.current_stream()
        kept: list[Any] = []
        token = if_node.bodies.set(kept)
        try:
            with _capturing, capturing, last:
                outputs = run()
        except Exception as failed:
            # Ending a capture that went wrong fails too, and hides what went wrong.
            if failed.__context__ is not None:
                failed.add_note(f"Before that: {failed.__context__}".splitlines()[0])
            failed.add_note(f"The last op was {last.name or 'a compiled kernel'}.")
            raise
        finally:
            if_node.bodies.reset(token)
            torch.cuda.set_stream(before)  # a capture that fails to end leaves the side stream
        graph.bodies = kept  # pyright: ignore[reportAttributeAccessIssue]
        return graph, outputs

    def pool(self) -> object:
        """A new memory pool."""
        return torch.cuda.graph_pool_handle()

    def on(self, device: torch.device) -> AbstractContextManager[Any]:
        """Make `device` the current one."""
        return torch.cuda.device(device)

    def stream(self) -> torch.cuda.Stream:
        """The current stream."""
        return torch.cuda.current_stream()

    def follow(self, before: torch.cuda.Stream) -> None:
        """Let the current stream wait for `before`."""
        torch.cuda.current_stream().wait_stream(before)

    def held(self) -> int:
        """Bytes reserved by the caching allocator."""
        return torch.cuda.memory_reserved()

    def release(self) -> None:
        """Empty the allocator's cache."""
        torch.cuda.empty_cache()


def graphs_for(config: Config, stats: Stats) -> Graphs | None:
    """The captures of a model, None where its options want none."""
    return Graphs(CudaGraphApi(), stats, config.graph_budget) if config.cuda_graphs else None
