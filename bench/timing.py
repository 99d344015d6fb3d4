"""Interleaved timing: every variant once a round, so that a slow minute slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Wall:
    """Seconds of one variant over the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def spread(self) -> float:
        """Half of the range between the slowest and the fastest, relative to the median."""
        return (max(self.seconds) - min(self.seconds)) / 2 / self.median

    def speedup(self, other: Wall) -> float:
        """How many times faster than `other`: the median over rounds of the ratio in a round."""
        return float(np.median(np.asarray(other.seconds) / np.asarray(self.seconds)))

    def speedup_range(self, other: Wall) -> tuple[float, float]:
        """Lowest and highest of those ratios."""
        ratios = np.asarray(other.seconds) / np.asarray(self.seconds)
        return float(ratios.min()), float(ratios.max())


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Return result and seconds of a call; waits for the GPU where there is one."""
    _wait()
    started = time.perf_counter()
    result = run()
    _wait()
    return result, time.perf_counter() - started


def interleaved(
    variants: dict[str, Callable[[], Any]], rounds: int, *, skip_first: bool = True
) -> dict[str, Wall]:
    """Run all variants `rounds` times, in turn, each round starting with another one.

    `skip_first` runs one untimed round before (compilation, caches, allocator).
    """
    names = list(variants)
    walls: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds + skip_first):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            _, seconds = timed(variants[name])
            if index or not skip_first:
                walls[name].append(seconds)
    return {name: Wall(tuple(values)) for name, values in walls.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
