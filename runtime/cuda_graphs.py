"""CUDA graphs: all captures of a model, their memory, and how one is replayed.

What is needed of CUDA is a small protocol (in `capture.py`; `cuda_graph_api.py` has the real one),
so that the logic can be tested without a device.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..passes.symbolic import tensor_bytes
from .capture import Capture, GraphApi, Inputs, InputUse, given, own, rehearsing
from .stats import Stats

if TYPE_CHECKING:
    from .captured import Captured

MOST_GRAPHS = 32


@dataclass
class _Pool:
    handle: object
    stream: Any = None  # of the last replay
    captures: OrderedDict[tuple[int, Hashable], tuple[weakref.ref[Captured], Capture]] = field(
        default_factory=OrderedDict[Any, Any]
    )

    def drop_orphans(self) -> None:
        """Free the captures of variants that are gone, as where Dynamo forgot their code."""
        for place in [place for place, (owner, _) in self.captures.items() if owner() is None]:
            self.captures.pop(place)[1].graph.reset()


class Graphs:
    """All captures of a model: pools of memory by device, eviction, and the figures.

    `budget`: bytes that captures may hold together on one device, None for no bound; the least
    recently replayed go first.
    """

    def __init__(self, api: GraphApi, stats: Stats, budget: int | None = None) -> None:
        self.api = api
        self.stats = stats
        self.lock = threading.RLock()
        self._budget = budget
        self._pools: dict[torch.device, _Pool] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held by captures on all devices."""
        return sum(c.nbytes for pool in self._pools.values() for _, c in pool.captures.values())

    def find(self, owner: Captured, key: Hashable, device: torch.device) -> Capture | None:
        """A capture by its owner and key."""
        pool = self._pools.get(device)
        found = None if pool is None else pool.captures.get((id(owner), key))
        return found[1] if found is not None and found[0]() is owner else None

    def rehearse(
        self, owner: Captured, device: torch.device, args: Sequence[Any]
    ) -> tuple[Any, Inputs]:
        """Run a variant as its capture will, from inputs of its own, which the capture gets.

        Kernels may be compiled for where inputs lie: for these, not for the caller's.
        """
        with self.api.on(device):
            inputs = owner.inputs(args)
            for i, buffer in inputs.items():
                buffer.take(args[i], kept=False)
            with rehearsing():
                return own(owner.run(*given(args, inputs)), {}), inputs

    def add(
        self,
        owner: Captured,
        key: Hashable,
        device: torch.device,
        args: Sequence[Any],
        inputs: Inputs,
    ) -> Capture:
        """Capture a variant for inputs like these; raises what the capture raises.

        Out of memory, the other captures of the device go and it is tried once more.
        """
        pool = self._pool(device)
        pool.drop_orphans()
        try:
            made = self._capture(owner, pool, device, args, inputs)
        except torch.OutOfMemoryError:
            if not pool.captures:
                raise
            self.clear(device)
            self.stats.say(
                "graph memory",
                "no memory for one more CUDA graph: those captured before were freed. Bound them "
                "with options={'graph_budget': BYTES}, or leave memory to the model.",
            )
            pool = self._pool(device)
            made = self._capture(owner, pool, device, args, inputs)
        pool.captures[id(owner), key] = (weakref.ref(owner), made)
        self.stats.captures += 1
        self._evict(pool, keep=made)
        return made

    def replay(self, owner: Captured, key: Hashable, capture: Capture, args: Sequence[Any]) -> Any:
        """Run a capture on `args`; gives tensors of the caller's own."""
        pool = self._pool(capture.device)
        pool.captures.move_to_end((id(owner), key))
        with self.api.on(capture.device):
            stream = self.api.stream()
            if pool.stream is not None and pool.stream != stream:
                self.api.follow(pool.stream)  # the pool's memory may still be in use there
            pool.stream = stream
            if stream not in capture.streams:
                self.api.lend([buffer.core for buffer in capture.inputs.values()])
                capture.streams.add(stream)
            for i, buffer in capture.inputs.items():
                buffer.take(args[i], kept=owner.uses[i] is InputUse.KEPT)
            capture.graph.replay()
            self.stats.replays += 1
            return own(capture.outputs, {})

    def drop(self, owner: Captured, key: Hashable, device: torch.device) -> None:
        """Free one capture."""
        found = self._pool(device).captures.pop((id(owner), key), None)
        if found is not None:
            found[1].graph.reset()

    def clear(self, device: torch.device | None = None) -> None:
        """Free all captures, of one device or of all, and their pools."""
        with self.lock:
            for where in [device] if device is not None else list(self._pools):
                pool = self._pools.pop(where, None)
                if pool is None:
                    continue
                for _, capture in pool.captures.values():
                    capture.graph.reset()
                pool.captures.clear()
                with self.api.on(where):
                    self.api.release()

    def _capture(
        self,
        owner: Captured,
        pool: _Pool,
        device: torch.device,
        args: Sequence[Any],
        inputs: Inputs,
    ) -> Capture:
        with self.api.on(device):
            inputs = inputs or owner.inputs(args)
            self.api.release()  # so that what the allocator holds tells what the capture takes
            before = self.api.held()
            run, values = owner.run, given(args, inputs)
            graph, outputs = self.api.capture(pool.handle, lambda: run(*values))
            taken = sum(tensor_bytes(b.core) for b in inputs.values())
            taken += max(self.api.held() - before, 0)
            weights, streams = owner.addresses(args), {self.api.stream()}
        return Capture(graph, inputs, weights, outputs, taken, device, streams)

    def _evict(self, pool: _Pool, keep: Capture) -> None:
        def over() -> bool:
            held = sum(c.nbytes for _, c in pool.captures.values())
            bound = self._budget is not None and held > self._budget
            return bound or len(pool.captures) > MOST_GRAPHS

        while over() and next(iter(pool.captures.values()))[1] is not keep:
            _, (_, old) = pool.captures.popitem(last=False)
            old.graph.reset()

    def _pool(self, device: torch.device) -> _Pool:
        pool = self._pools.get(device)
        if pool is None:
            with self.api.on(device):
                pool = self._pools[device] = _Pool(self.api.pool())
        return pool
