"""A clock on the device: which step of the plan's grid a timestep is, without asking the host.

The host's clock (`runtime/clock.py`) reads each timestep, which waits for the device. Here one
small program compares it with the next one that the plan expects, and leaves the step where a
forecast reads it as the row of its weights. A captured graph thus finds its place in each replay.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .launch import launches, launching_on, needs_device

BLOCK = 1024
TOLERANCE = 0.25
"""Of the distance to the neighbouring step: bf16 timesteps are rounded."""


def reach(timesteps: Sequence[float], step: int) -> float:
    """How far a timestep may lie from that of a step and still be taken for it."""
    beside = [timesteps[i] for i in (step - 1, step + 1) if 0 <= i < len(timesteps)]
    return TOLERANCE * min((abs(timesteps[step] - t) for t in beside), default=1.0)


@dataclass(frozen=True)
class Grid:
    """A plan's timesteps on a device; made by `grid_on`.

    timesteps: f32[steps]; within: f32[steps], how far a timestep may lie from each.
    """

    timesteps: Tensor
    within: Tensor


def grid_on(device: torch.device | str, timesteps: Sequence[float]) -> Grid:
    """A plan's grid on a device.

    A timestep is taken for one of the grid where it is nearer than a quarter of the way to that
    one's nearer neighbour. Raises ValueError for a grid without steps.
    """
    if len(timesteps) == 0:
        raise ValueError("a grid needs at least one timestep, got none")
    within = [reach(timesteps, step) for step in range(len(timesteps))]
    return Grid(
        torch.tensor(timesteps, dtype=torch.float32, device=device),
        torch.tensor(within, dtype=torch.float32, device=device),
    )


@dataclass(frozen=True)
class Dial:
    """Where a clock stands, on the device: i32[4], read through its parts, i32[1] each.

    Of one generation and guidance branch: each branch calls the model once a step.
    """

    state: Tensor

    @property
    def row(self) -> Tensor:
        """The step in the grid, -1 before the first: the row of the plan's tables."""
        return self.state[0:1]

    @property
    def unknown(self) -> Tensor:
        """1 from the first timestep on that was not the next of the grid, 0 before."""
        return self.state[1:2]

    @property
    def left(self) -> Tensor:
        """1 where the plan does not hold at this step: it is unknown, or a flag was set."""
        return self.state[2:3]

    def clear(self, first: int = 0) -> None:
        """Set back to before the first step, in place.

        `first` is the step of the grid that a generation begins with, not 0 for image-to-image.
        Writing it waits for no device.
        """
        for i, value in enumerate((-1, 0, 1, first)):
            self.state[i].fill_(value)


def dial_on(device: torch.device | str, first: int = 0) -> Dial:
    """A clock that has seen no step; `first` is the one of the grid that generations begin with."""
    return Dial(torch.tensor([-1, 0, 1, first], dtype=torch.int32, device=device))


def clock_reference(timestep: Tensor, grid: Grid, dial: Dial, flag: Tensor | None = None) -> None:
    """The meaning of a tick, in place.

    The time is the largest entry, if all are equal to it (for more than one dimension: or to the
    smallest, a clean first frame); otherwise it is unknown. At the dial's first step a generation
    begins, whatever was before. Otherwise the row moves on by one if the time is that of
    the next row and nothing was unknown so far; if not, it stays and the rest is unknown. A step
    that is unknown has left the plan, and so has one at which the flag is set.
    """
    t = timestep.to(torch.float32).reshape(-1)
    low, high = t.min(), t.max()
    told = ((t == low) | (t == high)).all()
    if timestep.dim() <= 1:
        told &= low == high
    steps = len(grid.timesteps)
    row, unknown, _, first = dial.state.tolist()
    first = min(max(first, 0), steps - 1)
    close = told & ((high - grid.timesteps).abs() <= grid.within)
    if close[first]:
        row, unknown = first, 0
    elif 0 <= row < steps - 1 and close[row + 1] and not unknown:
        row += 1
    else:
        unknown = 1
    left = unknown if flag is None else unknown | int(flag)
    dial.state[:3] = torch.tensor([row, unknown, left], dtype=torch.int32)


def clock(timestep: Tensor, grid: Grid, dial: Dial, flag: Tensor | None = None) -> None:
    """Enter a call of the model: move the dial to the step that `timestep` tells.

    timestep: [], [B] or [B, tokens], any real number type, on the dial's device; what it tells is
    in `clock_reference`. flag: i32[1] there, a guard's: where it is set the plan is left. Runs one
    program and waits for nothing. Raises ValueError for an empty or complex timestep or one on
    another device.
    """
    if timestep.numel() == 0 or timestep.is_complex() or timestep.dtype == torch.bool:
        got = f"{timestep.dtype}{list(timestep.shape)}"
        raise ValueError(f"clock needs a timestep of real numbers, got {got}")
    needs_device("clock", "the timestep", timestep, dial.state.device)
    needs_device("clock", "the grid", grid.timesteps, dial.state.device)
    if launches(timestep):
        _clock_triton(timestep, grid, dial, flag)
    else:
        clock_reference(timestep, grid, dial, flag)


def _clock_triton(timestep: Tensor, grid: Grid, dial: Dial, flag: Tensor | None) -> None:
    with launching_on(timestep.device):
        clock_kernel()[(1,)](
            timestep.contiguous(),
            grid.timesteps,
            grid.within,
            flag,
            dial.state,
            timestep.numel(),
            len(grid.timesteps),
            UNIFORM=timestep.dim() <= 1,
            BLOCK=BLOCK,
            ROUNDS=-(-timestep.numel() // BLOCK),
        )


@functools.cache
def clock_kernel() -> Any:
    """The jitted kernel. Built on first use: importing triton costs a CPU-only process nothing."""
    from ._clock_kernel import clock_kernel as kernel

    return kernel
