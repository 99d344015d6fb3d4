"""Forecast a region's output: a weighted sum of the last K cached values, one pass over memory.

The CPU path is one matrix-vector product; the CUDA path a Triton kernel that reads every history
entry once, unpacks and accumulates in fp32 and writes the result once, so its floor is the bytes of
the ring, of `add` and of the result over the memory bandwidth.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .formats import SCALE_BLOCK, Packed, format_of
from .launch import (
    MAX_HISTORY as MAX_HISTORY,  # noqa: PLC0414  # also reached from here
)
from .launch import (
    launches,
    launching_on,
    needs_device,
    needs_fp8,
    needs_history,
    needs_index,
    needs_weights,
    row_of,
)

BLOCK = 1024


def forecast_reference(
    slot: Tensor | Packed,
    weights: Tensor,
    *,
    row: Tensor | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """The meaning of a forecast: add + sum_k weights[k] * slot[k] in fp32, cast to slot's dtype.

    slot: [K, *shape], any float dtype, or packed; weights: f32[K], or f32[steps, K] of which `row`
    is taken; add: [*shape]; gives [*shape]. A packed entry counts unpacked in fp32.
    """
    dtype = slot.dtype
    if isinstance(slot, Packed):
        slot = Packed(slot.data, slot.scales, torch.float32).unpack()
    w = row_of(weights.to(torch.float32), row).view(-1, *([1] * (slot.dim() - 1)))
    total = (slot.to(torch.float32) * w).sum(0)
    return (total if add is None else total + add.to(torch.float32)).to(dtype)


def forecast(
    slot: Tensor | Packed,
    weights: Tensor,
    *,
    row: Tensor | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """Weighted sum of the K entries of a slot's ring, plus `add`.

    slot: [K, *shape] contiguous, fp32/bf16/fp16, 1 <= K <= 4, or such a ring packed (its numbers
    are unpacked in the same pass); weights: f32[K] on slot's device, in the ring's physical order.
    With `row` (one int32 or int64 on the device) weights are a table f32[steps, K], and the row is
    read where the sum is taken, so that a captured graph needs nothing from the host; a row outside
    the table counts as the nearest. add: [*shape], any float dtype: the live-in that a forecast
    delta belongs to.

    Gives [*shape] in slot's dtype, accumulated in fp32 and rounded once. Raises ValueError for
    anything that the kernel does not take.
    """
    data = slot.data if isinstance(slot, Packed) else slot
    _check(slot, data, weights, row)
    if add is not None:
        needs_device("forecast", "what is added", add, data.device)
        if add.shape != data.shape[1:]:
            got, want = tuple(add.shape), tuple(data.shape[1:])
            raise ValueError(f"forecast adds a tensor of the entries' shape {want}, got {got}")
    if launches(data):
        out = torch.empty(data.shape[1:], dtype=slot.dtype, device=data.device)
        return _forecast_triton(slot, weights, row, add, out)
    if isinstance(slot, Packed):
        return forecast_reference(slot, weights, row=row, add=add)
    flat = slot.view(slot.shape[0], -1)
    exact = slot.dtype == torch.float32
    made = torch.mv((flat if exact else flat.to(torch.float32)).t(), row_of(weights, row))
    made = made.view(slot.shape[1:])
    made = made if add is None else made.add_(add)
    return made if exact else made.to(slot.dtype)


def _check(slot: Tensor | Packed, data: Tensor, weights: Tensor, row: Tensor | None) -> None:
    needs_history("forecast", data.shape[0])
    if isinstance(slot, Packed):
        format_of(slot.data, slot.scales)
        needs_fp8(data.dtype, data.device)
    elif not data.dtype.is_floating_point:
        raise ValueError(f"forecast takes a floating-point slot, got {data.dtype}")
    if data.numel() == 0:
        raise ValueError(f"forecast got an empty slot, {tuple(data.shape)}; nothing to do")
    if not data.is_contiguous():
        raise ValueError(f"forecast takes a contiguous slot, got strides {data.stride()}")
    needs_weights("forecast", weights, row, data.shape[0])
    needs_device("forecast", "weights", weights, data.device)
    needs_index("forecast", "row", row, data.device)


def _forecast_triton(
    slot: Tensor | Packed,
    weights: Tensor,
    row: Tensor | None,
    add: Tensor | None,
    out: Tensor,
) -> Tensor:
    data, scales = (slot.data, slot.scales) if isinstance(slot, Packed) else (slot, None)
    add = None if add is None else add.contiguous()
    n = out.numel()
    with launching_on(data.device):
        forecast_kernel()[(-(-n // BLOCK),)](
            data,
            scales,
            weights,
            row,
            add,
            out,
            n,
            weights.shape[0],
            K=data.shape[0],
            SCALE_BLOCK=SCALE_BLOCK,
            RUNS=BLOCK // SCALE_BLOCK,
        )
    return out


@functools.cache
def forecast_kernel() -> Any:
    """The jitted kernel. Built on first use: importing triton costs a CPU-only process nothing."""
    from ._forecast_kernel import forecast_kernel as kernel

    return kernel
