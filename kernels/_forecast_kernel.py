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
def weighted_sum(slot, scales, weights, offsets, mask, n, K: tl.constexpr, SCALE_BLOCK: tl.constexpr):  # noqa: E501, PLR0917  # fmt: skip
    """sum_k weights[k] * slot[k * n + offsets] in fp32; with scales each number times its own."""
    total = tl.zeros(offsets.shape, dtype=tl.float32)
    entry = slot + offsets
    for k in tl.static_range(K):  # pyright: ignore[reportGeneralTypeIssues]
        value = tl.load(entry, mask=mask, other=0.0).to(tl.float32)
        if scales is not None:
            block = k * tl.cdiv(n, SCALE_BLOCK) + offsets // SCALE_BLOCK
            value *= tl.load(scales + block, mask=mask, other=0.0)
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
    BLOCK: tl.constexpr,
):
    """out[i] = add[i] + sum_k weights[k] * slot[k * n + i], accumulated in fp32."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    if row is not None:
        weights += table_row(row, rows) * K
    total = weighted_sum(slot, scales, weights, offsets, mask, n, K, SCALE_BLOCK)
    if add is not None:
        total += tl.load(add + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, total.to(out.dtype.element_ty), mask=mask)
