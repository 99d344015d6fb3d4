"""Numbers read from a device without waiting for it: copied at once, looked at a little later.

A host that waits for the device at each step leaves it idle between steps. What the runtime has to
know of a step (its time, a glimpse of its latents, whether a forecast is finite) is therefore
copied to pinned memory behind the work at hand and looked at when a later call finds it there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LAG = 4
"""Calls of the model after which a number has been looked at; then the host waits for it."""

WAITING = frozenset({"cuda"})
"""Devices that work while the host goes on."""


class Transfer(Protocol):
    """A copy to the host that is under way."""

    values: Tensor  # on the host; to be read once `ready` says so, or after `wait`

    def ready(self) -> bool:
        """Whether the copy is complete; does not wait."""
        ...

    def wait(self) -> None:
        """Wait until the copy is complete: for the work queued before it, none after it."""
        ...


class CudaTransfer:
    """A copy from a CUDA device into pinned memory, in the order of the current stream."""

    def __init__(self, value: Tensor) -> None:
        with torch.cuda.device(value.device):
            self.values = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=True)
            self.values.copy_(value, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def ready(self) -> bool:
        """Whether the copy is complete."""
        return self._copied.query()

    def wait(self) -> None:
        """Wait for the copy's event."""
        self._copied.synchronize()


def waits(value: object) -> bool:
    """Whether reading this value's entries would make the host wait for a device."""
    return isinstance(value, Tensor) and value.device.type in WAITING


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """A small tensor made on the host, on `device`, without waiting for that."""
    if device.type != "cuda" or value.device.type != "cpu":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class _Pending:
    call: int
    transfer: Transfer
    then: Callable[[Tensor], None]


class LateReads:
    """Reads under way, in the order in which they were begun.

    Each is handed to its callback exactly once, by `look` or `settle`, whichever comes first.
    """

    def __init__(
        self, transfer: Callable[[Tensor], Transfer] = CudaTransfer, lag: int = LAG
    ) -> None:
        self.transfer = transfer
        self.waits = 0  # times that the host had to
        self._lag = lag
        self._pending: deque[_Pending] = deque()
        self._call = 0
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._pending)

    def read(self, value: Tensor, then: Callable[[Tensor], None]) -> None:
        """Begin to copy `value` to the host; `then(copy)` is called when it has come."""
        transfer = self.transfer(value)
        with self._lock:
            self._pending.append(_Pending(self._call, transfer, then))

    def count(self) -> None:
        """A call of the model begins."""
        self._call += 1

    def look(self) -> None:
        """Take in what has come; wait for what is more than `lag` calls old."""
        with self._lock:
            while self._pending:
                first = self._pending[0]
                if self._call - first.call > self._lag:
                    self._wait(first.transfer)
                elif not first.transfer.ready():
                    return
                self._take()

    def settle(self) -> None:
        """Wait for everything that was begun, and take it in."""
        with self._lock:
            while self._pending:
                self._wait(self._pending[0].transfer)
                self._take()

    def _wait(self, transfer: Transfer) -> None:
        if not transfer.ready():
            self.waits += 1
            transfer.wait()

    def _take(self) -> None:
        done = self._pending.popleft()
        done.then(done.transfer.values)
