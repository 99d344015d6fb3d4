"""Forecast a region's output: a weighted sum of the last K cached values, one pass over memory.

The CPU path is one matrix-vector product; the CUDA path a Triton kernel that reads every history
entry once, accumulates in fp32 and writes the result once, so its floor is (K + 1) * bytes over
the memory bandwidth.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

BLOCK = 1024
MAX_HISTORY = 4


def forecast_reference(slot: Tensor, weights: Tensor) -> Tensor:
    """The meaning of a forecast: sum_k weights[k] * slot[k] in fp32, cast to slot's dtype.

    slot: [K, *shape], any float dtype; weights: f32[K] on the same device; gives [*shape].
    """
    w = weights.to(torch.float32).view(-1, *([1] * (slot.dim() - 1)))
    return (slot.to(torch.float32) * w).sum(0).to(slot.dtype)


def forecast(slot: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the K entries of a slot's ring.

    slot: [K, *shape] contiguous, fp32/bf16/fp16, 1 <= K <= 4; weights: f32[K] on slot's device,
    in the ring's physical order. Gives [*shape] in slot's dtype, accumulated in fp32. Raises
    ValueError for a K or a dtype that the kernel does not take.
    """
    k = slot.shape[0]
    if not 1 <= k <= MAX_HISTORY:
        raise ValueError(f"forecast takes a history of 1 to {MAX_HISTORY} entries, got {k}")
    if not slot.dtype.is_floating_point:
        raise ValueError(f"forecast takes a floating-point slot, got {slot.dtype}")
    if weights.shape != (k,):
        raise ValueError(f"forecast needs {k} weights, one per entry, got {tuple(weights.shape)}")
    if slot.is_cuda:
        return _forecast_triton(slot, weights)
    flat = slot.view(k, -1)
    if slot.dtype == torch.float32:
        return torch.mv(flat.t(), weights).view(slot.shape[1:])
    return torch.mv(flat.to(torch.float32).t(), weights).to(slot.dtype).view(slot.shape[1:])


def _forecast_triton(slot: Tensor, weights: Tensor) -> Tensor:
    out = torch.empty(slot.shape[1:], dtype=slot.dtype, device=slot.device)
    n = out.numel()
    grid = (max(1, math.ceil(n / BLOCK)),)
    forecast_kernel()[grid](slot, weights, out, n, K=slot.shape[0], BLOCK=BLOCK)
    return out


@functools.cache
def forecast_kernel() -> Any:
    """The jitted kernel. Built on first use: importing triton costs a CPU-only process nothing."""
    from ._forecast_kernel import forecast_kernel as kernel

    return kernel
