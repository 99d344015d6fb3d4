"""The Triton kernel behind `kernels.forecast`, in a file of its own so that import is lazy."""

# Triton resolves annotations inside a kernel itself, and knows none but its own.
# pyright: reportMissingParameterType=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forecast_kernel(slot, weights, out, n, K: tl.constexpr, BLOCK: tl.constexpr):  # noqa: PLR0917
    """out[i] = sum_k weights[k] * slot[k * n + i], accumulated in fp32."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    entry = slot + offsets
    for k in tl.static_range(K):  # pyright: ignore[reportGeneralTypeIssues]
        total += tl.load(weights + k) * tl.load(entry, mask=mask, other=0.0).to(tl.float32)
        entry += n  # stepping the pointer: k * n would pass 2**31 for video latents
    tl.store(out + offsets, total.to(out.dtype.element_ty), mask=mask)
