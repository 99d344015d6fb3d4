"""The Triton kernel behind `kernels.write`, in a file of its own so that import is lazy."""

# Triton resolves annotations inside a kernel itself, and knows none but its own.
# pyright: reportMissingParameterType=false

from __future__ import annotations

import triton
import triton.language as tl

from . import formats

SMALLEST_SCALE = tl.constexpr(formats.SMALLEST_SCALE)
ROUNDING = tl.constexpr(1.5 * 2**23)  # fp32 at this size has no fraction: adding it rounds to even


@triton.jit
def write_kernel(  # noqa: PLR0917
    value,
    slot,
    scales,
    signs,
    parts,
    size,
    LIMIT: tl.constexpr,
    FLOATS: tl.constexpr,
    RUNS: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """Program (c, r) packs and sketches TILES tiles of RUNS x SCALE_BLOCK numbers of row r.

    slot[r * size + j] = pack(value[r * size + j]), and
    parts[r, c, b] = sum of signs[j] * value[r * size + j] over the program's j = b mod the tile.
    """
    chunk = tl.program_id(0).to(tl.int64)
    sample = tl.program_id(1).to(tl.int64)
    first = sample * size
    run = tl.arange(0, RUNS)
    lanes = run[:, None] * SCALE_BLOCK + tl.arange(0, SCALE_BLOCK)[None, :]
    total = tl.zeros((RUNS, SCALE_BLOCK), dtype=tl.float32)
    for t in range(TILES):
        start = (chunk * TILES + t) * (RUNS * SCALE_BLOCK)
        j = start + lanes
        mask = j < size
        x = tl.load(value + first + j, mask=mask, other=0.0).to(tl.float32)
        if signs is not None:
            total += x * tl.load(signs + j, mask=mask, other=0).to(tl.float32)
        if slot is not None:
            if scales is not None:
                largest = tl.max(tl.where(x == x, tl.abs(x), float("inf")), axis=1)  # noqa: PLR0124
                scale = tl.maximum(tl.div_rn(largest, LIMIT), SMALLEST_SCALE)
                inside = start + run * SCALE_BLOCK < size
                tl.store(scales + (first + start) // SCALE_BLOCK + run, scale, mask=inside)
                scale = scale[:, None]
                x *= tl.div_rn(1.0, scale)
                x = tl.where(scale == float("inf"), 1.0, x)
                x = tl.minimum(tl.maximum(x, -LIMIT), LIMIT)
                if not FLOATS:
                    x = (x + ROUNDING) - ROUNDING
            tl.store(slot + first + j, x.to(slot.dtype.element_ty), mask=mask)
    if parts is not None:
        part = (sample * tl.num_programs(0) + chunk) * (RUNS * SCALE_BLOCK)
        tl.store(parts + part + lanes, total)
