"""The Triton kernels behind `kernels.probe`, in a file of their own so that import is lazy."""

# Triton resolves annotations inside a kernel itself, and knows none but its own.
# pyright: reportMissingParameterType=false

from __future__ import annotations

import triton
import triton.language as tl

from ._forecast_kernel import numbers_of, weighted_sum


@triton.jit
def distance_kernel(  # noqa: PLR0917
    value,
    reference,
    scales,
    weights,
    parts,
    n,
    K: tl.constexpr,
    SQUARE: tl.constexpr,
    OF_VALUE: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    RUNS: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    """parts[0, p] = sum |value - r| and parts[1, p] = sum |r| over program p's blocks of n."""
    program = tl.program_id(0).to(tl.int64)
    count = tl.num_programs(0)
    moved = tl.zeros((RUNS, SCALE_BLOCK), dtype=tl.float32)
    size = tl.zeros((RUNS, SCALE_BLOCK), dtype=tl.float32)
    for t in range(ROUNDS):
        run = (t * count + program) * RUNS + tl.arange(0, RUNS)
        offsets = numbers_of(run, SCALE_BLOCK)
        mask = offsets < n
        v = tl.load(value + offsets, mask=mask, other=0.0).to(tl.float32)
        if weights is not None:
            r = weighted_sum(reference, scales, weights, run, n, K, SCALE_BLOCK)
        else:
            r = tl.load(reference + offsets, mask=mask, other=0.0).to(tl.float32)
            if scales is not None:
                held = tl.load(scales + run, mask=run * SCALE_BLOCK < n, other=0.0)
                r *= held[:, None]
        base = v if OF_VALUE else r
        if SQUARE:
            moved += (v - r) * (v - r)
            size += base * base
        else:
            moved += tl.abs(v - r)
            size += tl.abs(base)
    tl.store(parts + program, tl.sum(moved))
    tl.store(parts + count + program, tl.sum(size))


@triton.jit
def verdict_kernel(  # noqa: PLR0917
    parts,
    figures,
    limit,
    flag,
    running,
    n,
    count,
    SQUARE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    STICKY: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The means of the parts (or their roots) as figures; then the flag and the running figures."""
    lanes = tl.arange(0, PARTS)
    mask = lanes < count
    moved = tl.sum(tl.load(parts + lanes, mask=mask, other=0.0)) / n
    size = tl.sum(tl.load(parts + count + lanes, mask=mask, other=0.0)) / n
    if SQUARE:
        moved = tl.sqrt(moved)
        size = tl.sqrt(size)
    tl.store(figures, moved)
    tl.store(figures + 1, size)
    if flag is not None:
        relative = moved / size
        total = tl.load(running + 2) + relative
        counted = total if ACCUMULATE else relative
        below = counted < tl.load(limit)
        beyond = tl.where(below, 0, 1)
        worst = tl.load(running + 1)
        tl.store(running, relative)
        tl.store(running + 1, tl.where(relative > worst, relative, worst))
        tl.store(running + 2, tl.where(below, total, 0.0))
        tl.store(running + 3, tl.load(running + 3) + 1.0)
        if STICKY:
            beyond = beyond | tl.load(flag)
        tl.store(flag, beyond)
