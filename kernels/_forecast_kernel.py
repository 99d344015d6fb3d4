"""The Triton kernel behind `kernels.forecast`, in a file of its own so that import is lazy."""

# Triton resolves annotations inside a kernel itself, and knows none but its own.
# pyright: reportMissingParameterType=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def table_row(row, rows):
    """The row of a table that a device index names, the nearest one where it lies outside."""
    return tl.minimum(tl.maximum(tl.load(row), 0), rows - 1)


@triton.jit
def numbers_of(run, SCALE_BLOCK: tl.constexpr):
    """Where the numbers of these runs of SCALE_BLOCK lie: one row for each run."""
    return run[:, None] * SCALE_BLOCK + tl.arange(0, SCALE_BLOCK)[None, :]


@triton.jit
def weighted_sum(slot, scales, weights, run, n, K: tl.constexpr, SCALE_BLOCK: tl.constexpr):  # noqa: PLR0917
    """sum_k weights[k] * slot[k * n + i] in fp32 for the numbers i of these runs.

    With scales each number counts times that of its run.
    """
    offsets = numbers_of(run, SCALE_BLOCK)
    mask = offsets < n
    total = tl.zeros(offsets.shape, dtype=tl.float32)
    entry = slot + offsets
    for k in tl.static_range(K):  # pyright: ignore[reportGeneralTypeIssues]
        value = tl.load(entry, mask=mask, other=0.0).to(tl.float32)
        if scales is not None:
            held = scales + k * tl.cdiv(n, SCALE_BLOCK) + run
            value *= tl.load(held, mask=run * SCALE_BLOCK < n, other=0.0)[:, None]
        total += tl.load(weights + k) * value
        entry += n  # stepping the pointer: k * n would pass 2**31 for video latents
    return total


@triton.jit
def forecast_kernel(  # noqa: PLR0917
    slot,
    scales,
    weights,
    row,
    add,
    out,
    n,
    rows,
    K: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    RUNS: tl.constexpr,
):
    """out[i] = add[i] + sum_k weights[k] * slot[k * n + i], accumulated in fp32."""
    run = tl.program_id(0).to(tl.int64) * RUNS + tl.arange(0, RUNS)
    offsets = numbers_of(run, SCALE_BLOCK)
    mask = offsets < n
    if row is not None:
        weights += table_row(row, rows) * K
    total = weighted_sum(slot, scales, weights, run, n, K, SCALE_BLOCK)
    if add is not None:
        total += tl.load(add + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, total.to(out.dtype.element_ty), mask=mask)
