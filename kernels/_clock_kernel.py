"""The Triton kernel behind `kernels.clock`, in a file of its own so that import is lazy."""

# Triton resolves annotations inside a kernel itself, and knows none but its own.
# pyright: reportMissingParameterType=false

from __future__ import annotations

import triton
import triton.language as tl


# A timestep may be an entry of a sampler's table: where that lies is no reason to compile again.
@triton.jit(do_not_specialize_on_alignment=["timestep"])
def clock_kernel(  # noqa: PLR0917
    timestep,
    grid,
    within,
    flag,
    dial,
    n,
    steps,
    UNIFORM: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    """The dial (row, unknown, left, first) after a call at this timestep of n entries."""
    lanes = tl.arange(0, BLOCK)
    low = tl.full((), float("inf"), tl.float32)
    high = tl.full((), float("-inf"), tl.float32)
    for i in range(ROUNDS):
        entry = i * BLOCK + lanes
        mask = entry < n
        t = tl.load(timestep + entry, mask=mask, other=0).to(tl.float32)
        low = tl.minimum(low, tl.min(tl.where(mask, t, float("inf"))))
        high = tl.maximum(high, tl.max(tl.where(mask, t, float("-inf"))))
    odd = tl.full((), 0, tl.int32)  # entries that are neither, NaN among them
    for i in range(ROUNDS):
        entry = i * BLOCK + lanes
        mask = entry < n
        t = tl.load(timestep + entry, mask=mask, other=0).to(tl.float32)
        odd += tl.sum(tl.where(mask & (t != low) & (t != high), 1, 0))
    told = odd == 0
    if UNIFORM:
        told = told & (low == high)
    row = tl.load(dial)
    unknown = tl.load(dial + 1)
    first = tl.minimum(tl.maximum(tl.load(dial + 3), 0), steps - 1)
    at = tl.minimum(row + 1, steps - 1)
    begins = told & (tl.abs(high - tl.load(grid + first)) <= tl.load(within + first))
    moves = told & (tl.abs(high - tl.load(grid + at)) <= tl.load(within + at))
    moves = moves & (unknown == 0) & (row >= 0) & (row + 1 < steps)
    row = tl.where(begins, first, tl.where(moves, row + 1, row))
    unknown = tl.where(begins | moves, 0, 1)
    left = unknown
    if flag is not None:
        left = left | tl.load(flag)
    tl.store(dial, row)
    tl.store(dial + 1, unknown)
    tl.store(dial + 2, left)
