"""A device that is none: CPU tensors whose reading counts as waiting, and copies that come late."""

from __future__ import annotations

from typing import Any

import torch
from ditcache.runtime import guidance_watch, late_reads, seen
from ditcache.runtime.executor import StepExecutor
from ditcache.runtime.late_reads import LateReads
from ditcache.runtime.session import session_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS = frozenset(
    {
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.equal.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.is_nonzero.default,
    }
)


class SlowCopy:
    """A transfer that is ready after `delay` questions, or once it is waited for.

    Until then its values are nonsense.
    """

    delay = 3
    waited = 0

    def __init__(self, value: Tensor) -> None:
        self._coming = value.clone()
        self.values = torch.full_like(value, torch.nan if value.is_floating_point() else -1)
        self.left = SlowCopy.delay

    def ready(self) -> bool:
        self.left -= 1
        if self.left < 0:
            self.values = self._coming
        return self.left < 0

    def wait(self) -> None:
        if self.left >= 0:
            SlowCopy.waited += 1
        self.left, self.values = -1, self._coming


class Reads(TorchDispatchMode):
    """Notes what reads entries of a tensor, other than of a copy on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS and not self.paused:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def pretend(monkeypatch: Any, model: Any, *, delay: int = 3) -> Reads:
    """From now on the model's CPU tensors count as a device's; gives what waits for it."""
    monkeypatch.setattr(late_reads, "WAITING", frozenset({"cpu"}))
    monkeypatch.setattr(SlowCopy, "delay", delay)
    monkeypatch.setattr(SlowCopy, "waited", 0)
    session = session_of(model)
    assert session is not None
    session.late.transfer = SlowCopy
    reads = Reads()
    take = LateReads._take

    def taken(self: LateReads) -> None:
        reads.paused = True
        take(self)
        reads.paused = False

    monkeypatch.setattr(LateReads, "_take", taken)
    for module in (seen, guidance_watch):
        original = module.glimpse

        def glimpse(value: Tensor, original: Any = original) -> Any:
            reads.found.append("glimpse")
            return original(value)

        monkeypatch.setattr(module, "glimpse", glimpse)
    for name in ("_run", "forecast"):
        original = getattr(StepExecutor, name)

        def watched(self: Any, *args: Any, original: Any = original) -> Any:
            with reads:
                return original(self, *args)

        monkeypatch.setattr(StepExecutor, name, watched)
    return reads
