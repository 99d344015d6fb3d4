"""CUDA graphs: a variant captured once and replayed after that, under an owner of all captures.

The dispatcher decides which variant runs; a `Captured` obeys. What it needs of CUDA is a small
protocol (in `capture.py`; `cuda_graph_api.py` has the real one), so that the logic can be tested
without a device.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..kernels.formats import Packed
from ..passes.signature import plain_tensors
from ..passes.symbolic import tensor_bytes
from .capture import Capture, GraphApi, Input, InputUse, own
from .offload import Offloaded
from .stats import Stats

Run = Callable[..., Any]

MOST_GRAPHS = 32
LEAST_REPLAYS = 2
"""Replays for each capture, on average, below which capturing does not pay."""
TRIED = 8
"""Captures of one variant after which its replays are counted."""


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

    def add(
        self, owner: Captured, key: Hashable, device: torch.device, args: Sequence[Any]
    ) -> Capture:
        """Capture a variant for inputs like these; raises what the capture raises.

        Out of memory, the other captures of the device go and it is tried once more.
        """
        pool = self._pool(device)
        pool.drop_orphans()
        try:
            made = self._capture(owner, pool, device, args)
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
            made = self._capture(owner, pool, device, args)
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
        self, owner: Captured, pool: _Pool, device: torch.device, args: Sequence[Any]
    ) -> Capture:
        with self.api.on(device):
            self.api.release()  # so that what the allocator holds tells what the capture takes
            before = self.api.held()
            copied = (InputUse.KEPT, InputUse.VALUE)
            inputs = {
                i: Input.like(v)
                for i, v in enumerate(args)
                if isinstance(v, Tensor) and owner.uses[i] in copied
            }
            given = [inputs[i].whole if i in inputs else v for i, v in enumerate(args)]
            run = owner.run
            graph, outputs = self.api.capture(pool.handle, lambda: run(*given))
            buffers = sum(tensor_bytes(b.core) for b in inputs.values())
            grown = max(self.api.held() - before, buffers)
        return Capture(graph, inputs, owner.addresses(args), outputs, grown, device)

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


class Captured:
    """A callable like `run`, captured for each kind of inputs at its second call with them.

    The first call runs as it is: kernels are tuned and libraries load there. `uses` says of each
    input how the graph gets it, `name` names the variant in messages. What it gives belongs to the
    caller: the next replay does not touch it. Where a capture fails, or is not worth it, `run` is
    called from then on, and the reason is counted and said once.
    """

    def __init__(self, run: Run, uses: Sequence[InputUse], name: str, graphs: Graphs) -> None:
        self.run = run
        self.uses = tuple(uses)
        self._name = name
        self._graphs = graphs
        self._weights = [i for i, use in enumerate(uses) if use is InputUse.WEIGHT]
        self._others = [i for i, use in enumerate(uses) if use is not InputUse.WEIGHT]
        self._warm: set[Hashable] = set()
        self._captures = 0
        self._replays = 0
        self._given_up = False

    def __call__(self, *args: Any) -> Any:
        """What `run` gives for these inputs."""
        if self._given_up:
            return self.run(*args)
        graphs = self._graphs
        with graphs.lock:
            place = self._place(args)
            if place is None:
                return self.run(*args)
            device, key = place
            capture = graphs.find(self, key, device)
            if capture is not None and capture.weights != self.addresses(args):
                graphs.drop(self, key, device)  # weights were moved or replaced
                graphs.stats.recaptures += 1
                capture = None
            if capture is None:
                if key not in self._warm:
                    self._warm.add(key)
                    return self.run(*args)
                capture = self._capture(key, device, args)
                if capture is None:
                    return self.run(*args)
            self._replays += 1
            return graphs.replay(self, key, capture, args)

    @property
    def given_up(self) -> bool:
        """Whether nothing is captured any more."""
        return self._given_up

    def addresses(self, args: Sequence[Any]) -> tuple[int, ...]:
        """Where the weights among the inputs lie."""
        found: list[int] = []
        for i in self._weights:
            value = args[i]
            if type(value) in (Tensor, torch.nn.Parameter):
                found.append(value.data_ptr())
            elif isinstance(value, Tensor):  # quantised: a wrapper around plain tensors
                found.extend(part.data_ptr() for part in plain_tensors(value))
        return tuple(found)

    def _capture(self, key: Hashable, device: torch.device, args: Sequence[Any]) -> Capture | None:
        if self._captures >= TRIED and self._replays < LEAST_REPLAYS * self._captures:
            return self._give_up(
                "inputs that keep changing",
                f"{self._captures} captures were replayed {self._replays} times in all: weights "
                "keep moving, or a number among the inputs is another one at each step.",
            )
        self._captures += 1
        try:
            return self._graphs.add(self, key, device, args)
        except torch.OutOfMemoryError:
            return self._give_up("no memory for a CUDA graph", "")
        except Exception as failed:  # whatever fails at a capture, the variant itself can run
            where = " ".join(getattr(failed, "__notes__", ()))
            text = f"{type(failed).__name__}: {failed}".splitlines()[0]
            return self._give_up("a capture failed", f"{text}. {where}")

    def _give_up(self, reason: str, detail: str) -> None:
        self._given_up = True
        stats = self._graphs.stats
        stats.uncaptured[reason] += 1
        stats.say(f"graph {reason}", f"{self._name} runs without CUDA graphs: {reason}. {detail}")

    def _place(self, args: Sequence[Any]) -> tuple[torch.device, Hashable] | None:
        """The device and what a capture depends on; None where inputs cannot be captured."""
        parts: list[Hashable] = []
        device: torch.device | None = None
        for i in self._others:
            value = args[i]
            if isinstance(value, Packed):
                parts.append(
                    tuple(t.data_ptr() for t in (value.data, value.scales) if t is not None)
                )
                value = value.data
            if isinstance(value, Offloaded):
                return self._give_up("a slot on the host", "It is fetched at each step.")
            if not isinstance(value, Tensor):
                parts.append((type(value), value))
                continue
            if type(value) is not Tensor and type(value) is not torch.nn.Parameter:
                return self._give_up("an input of a tensor subclass", type(value).__name__)
            if value.device.type not in DEVICES:
                return self._give_up("an input on another device", f"Input {i}: {value.device}.")
            if device is not None and value.device != device:
                return self._give_up("inputs on two devices", f"{device} and {value.device}.")
            device = value.device
            slot = value.data_ptr() if self.uses[i] is InputUse.SLOT else 0
            parts.append((value.shape, value.stride(), value.dtype, slot))
        if device is None:
            return self._give_up("no input on a device", "")
        if len(self._warm) > 2 * MOST_GRAPHS:
            self._warm.clear()
        # A buffer that was made in inference mode cannot be written outside of it.
        return device, (device, torch.is_inference_mode_enabled(), *parts)


DEVICES = frozenset({"cuda"})
"""Devices whose work can be captured."""
