"""Seconds, gaps and memory of a loop, measured without a synchronisation inside it."""

from __future__ import annotations

import hashlib
import statistics
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .loop import Call, Loop

WAITED = "synchronizing CUDA operation"
"""What torch says of one, in its mode that warns."""


class CudaMark:
    """An event: when the device gets there."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def until(self, later: CudaMark) -> float:
        return self.event.elapsed_time(later.event) / 1e3


class HostMark:
    """Now: on a CPU the work is done when the call returns."""

    def __init__(self) -> None:
        self.at = time.perf_counter()

    def until(self, later: HostMark) -> float:
        return later.at - self.at


def measure(loop: Loop, model: Call, rounds: int, computed: Sequence[int]) -> dict[str, Any]:
    """Run the loop `rounds` times; medians over all rounds, seconds and bytes.

    loop: the whole loop by the wall clock, from and to an idle device. computed, skipped: one call
    on the device, of steps that are and are not among `computed`. gap: between two calls on the
    device, the sampler's own arithmetic included. host: one call until it returns. peak_bytes:
    most memory allocated, None on a CPU.
    """
    cuda = loop.timesteps.is_cuda
    marks: type[Any] = CudaMark if cuda else HostMark
    walls: list[float] = []
    steps: dict[bool, list[float]] = {True: [], False: []}
    gaps: list[float] = []
    hosts: list[float] = []
    sample: Tensor | None = None
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(rounds):
        seen: list[tuple[Any, Any]] = []

        def each(_: int, call: Call, seen: list[tuple[Any, Any]] = seen) -> Any:
            before, started = marks(), time.perf_counter()
            out = call()
            hosts.append(time.perf_counter() - started)
            seen.append((before, marks()))
            return out

        settle(loop)
        started = time.perf_counter()
        sample = loop.run(model, each)
        settle(loop)
        walls.append(time.perf_counter() - started)
        for i, (before, after) in enumerate(seen):
            steps[i in computed].append(before.until(after))
            if i:
                gaps.append(seen[i - 1][1].until(before))
    return {
        "loop": statistics.median(walls),
        "loops": walls,
        "computed": _median(steps[True]),
        "skipped": _median(steps[False]),
        "gap": _median(gaps),
        "host": _median(hosts),
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "digest": _digest(sample),
    }


def steady(loop: Loop, model: Call, steps: int | None = None) -> dict[str, Any]:
    """Run a loop that compiles nothing any more; what should not be in it, None on a CPU.

    waits: operations for which the host waited for the device, in calls after the first one.
    device_allocations: of the allocator, for memory that it did not hold yet.
    """
    if not loop.timesteps.is_cuda:
        loop.run(model, steps=steps)
        return {"waits": None, "device_allocations": None}
    waits: list[str] = []

    def each(i: int, call: Call) -> Any:
        if i == 0:
            return call()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return call()
            finally:
                torch.cuda.set_sync_debug_mode("default")
                waits.extend(str(w.message) for w in said if WAITED in str(w.message))

    before = torch.cuda.memory_stats()["num_device_alloc"]
    loop.run(model, each, steps)
    made = torch.cuda.memory_stats()["num_device_alloc"] - before
    return {"waits": len(waits), "device_allocations": made}


def _digest(sample: Tensor | None) -> str:
    if sample is None:
        return ""
    raw = sample.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()[:16]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def settle(loop: Loop) -> None:
    """Wait until the device has done everything."""
    if loop.timesteps.is_cuda:
        torch.cuda.synchronize()
