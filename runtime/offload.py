"""Slots in pinned host memory: fetched ahead of their forecasts, for regions too large to stay.

A forecast needs its ring for as long as one kernel runs. Rings beyond a budget lie on the host, and
two of them at a time are on the device: the one that is read, and the one that comes next. Which
that is was seen when they were fetched last.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernels.formats import Format, Packed, blocks_of
from ..kernels.write import write
from .config import Config

DEVICES = frozenset({"cuda"})
"""Devices whose slots may lie on the host."""
ALIGNED = 256


class Lane(Protocol):
    """Copies beside the work of the current stream."""

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Zeros in memory of the host that a device copies from and to by itself."""
        ...

    def copy(self, target: Tensor, source: Tensor) -> Any:
        """Queue a copy behind what the current stream has so far; gives its event."""
        ...

    def wait(self, event: Any) -> None:
        """Let the current stream wait for a copy."""
        ...


class CudaLane:
    """A stream of its own; pinned memory on the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Zeros in pinned memory."""
        return torch.zeros(tuple(shape), dtype=dtype, device="cpu", pin_memory=True)

    def copy(self, target: Tensor, source: Tensor) -> torch.cuda.Event:
        """Queue a copy; memory of the device that it uses is not given away before its end."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        for side in (target, source):
            if side.is_cuda:
                side.record_stream(self._stream)
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait(self, event: torch.cuda.Event) -> None:
        """Let the current stream wait."""
        torch.cuda.current_stream(self._device).wait_event(event)


class Offloaded:
    """A ring in pinned host memory: [K, *shape] as a plain or a packed one would be stored."""

    def __init__(self, value: Tensor, history: int, kind: Format | None, stage: Stage) -> None:
        self.shape = torch.Size((history, *value.shape))
        self.dtype, self.device = value.dtype, value.device
        self._kind, self._stage = kind, stage
        stored = value.dtype if kind is None else kind.dtype
        self.parts = [stage.lane.pinned(self.shape, stored)]
        if kind is not None and kind.scaled:
            blocks = blocks_of(value.numel())
            self.parts.append(stage.lane.pinned((history, blocks), torch.float32))
        self.writes = 0

    def put(self, index: int, value: Tensor) -> None:
        """Write an entry; packed on the device first, where there is a format."""
        made = [value.contiguous()]
        if self._kind is not None:
            packed = Packed.empty(self._kind, 1, value)
            write(value, packed, 0)
            made = [packed.data[0], *([] if packed.scales is None else [packed.scales[0]])]
        for mine, part in zip(self.parts, made, strict=True):
            self._stage.lane.copy(mine[index], part)
        self.writes += 1

    def fetch(self) -> Tensor | Packed:
        """The ring on the device: for kernels that are queued before another one is fetched."""
        views = self._stage.fetch(self)
        if self._kind is None:
            return views[0]
        return Packed(views[0], views[1] if len(views) > 1 else None, self.dtype)

    def entry(self, index: int) -> Tensor:
        """A copy of entry `index` on the device, in the type that was written."""
        ring = self.fetch()
        return ring.entry(index).clone() if isinstance(ring, Packed) else ring[index].clone()

    @property
    def nbytes(self) -> int:
        """Bytes on the host."""
        return sum(part.nbytes for part in self.parts)


@dataclass
class _Half:
    buffer: Tensor | None = None
    ring: weakref.ref[Offloaded] | None = None
    writes: int = -1
    event: Any = None

    def holds(self, ring: Offloaded) -> bool:
        return self.ring is not None and self.ring() is ring and self.writes == ring.writes


class _Here(threading.local):
    """What one thread has fetched: another one would overwrite it."""

    def __init__(self) -> None:
        self.halves = (_Half(), _Half())
        self.last = 1
        self.before: weakref.ref[Offloaded] | None = None


class Stage:
    """Memory of one device for two fetched rings a thread."""

    def __init__(self, device: torch.device, lane: Lane) -> None:
        self.lane = lane
        self.nbytes = 0
        self._device = device
        self._here = _Here()
        self._after: weakref.WeakKeyDictionary[Offloaded, weakref.ref[Offloaded]] = (
            weakref.WeakKeyDictionary()
        )

    def fetch(self, ring: Offloaded) -> list[Tensor]:
        """The parts of a ring on the device; begins to fetch the one that is read after it."""
        here = self._here
        found = next((i for i, half in enumerate(here.halves) if half.holds(ring)), None)
        at = 1 - here.last if found is None else found
        if found is None:
            self._begin(here.halves[at], ring)
        self.lane.wait(here.halves[at].event)
        here.last = at
        if here.before is not None and (before := here.before()) is not None:
            self._after[before] = weakref.ref(ring)
        here.before = weakref.ref(ring)
        follower = self._after[ring]() if ring in self._after else None
        if follower is not None and not any(half.holds(follower) for half in here.halves):
            self._begin(here.halves[1 - at], follower)
        return self._views(here.halves[at], ring)

    def _begin(self, half: _Half, ring: Offloaded) -> None:
        need = sum(-(-part.nbytes // ALIGNED) * ALIGNED for part in ring.parts)
        if half.buffer is None or half.buffer.nbytes < need:
            self.nbytes += need - (0 if half.buffer is None else half.buffer.nbytes)
            half.buffer = torch.empty(need, dtype=torch.uint8, device=self._device)
        for view, part in zip(self._views(half, ring), ring.parts, strict=True):
            half.event = self.lane.copy(view, part)
        half.ring, half.writes = weakref.ref(ring), ring.writes

    @staticmethod
    def _views(half: _Half, ring: Offloaded) -> list[Tensor]:
        assert half.buffer is not None
        views: list[Tensor] = []
        start = 0
        for part in ring.parts:
            raw = half.buffer[start : start + part.nbytes]
            views.append(raw.view(part.dtype).view(part.shape))
            start += -(-part.nbytes // ALIGNED) * ALIGNED
        return views


class Offload:
    """Decides which slots lie on the host: those with which `held` would pass `budget` bytes."""

    def __init__(
        self,
        budget: int,
        held: Callable[[], int],
        lane: Callable[[torch.device], Lane] = CudaLane,
    ) -> None:
        self._budget = budget
        self._held = held
        self._lane = lane
        self._stages: dict[torch.device, Stage] = {}

    def stage_for(self, value: Tensor, history: int, kind: Format | None) -> Stage | None:
        """The stage for a new ring of such values, None if it stays on the device."""
        each = value.nbytes if kind is None else kind.nbytes(value.numel())
        if value.device.type not in DEVICES or self._held() + history * each <= self._budget:
            return None
        if value.device not in self._stages:
            self._stages[value.device] = Stage(value.device, self._lane(value.device))
        return self._stages[value.device]

    @property
    def nbytes(self) -> int:
        """Bytes of the devices that fetched rings take."""
        return sum(stage.nbytes for stage in self._stages.values())


def offload_for(config: Config, held: Callable[[], int]) -> Offload | None:
    """The offload of a model's slots, None where its options want none."""
    return None if config.offload_beyond is None else Offload(config.offload_beyond, held)
