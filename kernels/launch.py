"""What the wrappers share: checks of their arguments, the device to launch on, a table's row."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

MAX_HISTORY = 4
"""Entries of a ring that one kernel reads."""
DEVICES = frozenset({"cuda"})
"""Devices on which the Triton kernels run; on any other one the references do."""
FP8_CAPABILITY = (8, 9)
"""The first compute capability whose hardware converts fp8-e4m3."""


def launches(value: Tensor) -> bool:
    """Whether a kernel runs for values there, rather than its reference."""
    return value.device.type in DEVICES


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` the current one: Triton launches there, wherever the tensors lie."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def needs_fp8(dtype: torch.dtype, device: torch.device) -> None:
    """Raise ValueError where numbers are fp8-e4m3 and the device has no hardware for it."""
    if dtype == torch.float8_e4m3fn and device.type == "cuda":
        have = _capability(device.index)
        if have < FP8_CAPABILITY:
            raise ValueError(
                f"fp8_e4m3 needs a GPU of compute capability 8.9 or newer, {device} has "
                f"{have[0]}.{have[1]}; use the format int8"
            )


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def needs_values(name: str, what: str, value: Tensor) -> None:
    """Raise ValueError for a tensor that holds nothing or is no floating-point number."""
    if value.numel() == 0:
        raise ValueError(f"{name} got an empty {what}, {tuple(value.shape)}; nothing to do")
    if not value.dtype.is_floating_point:
        raise ValueError(f"{name} takes a floating-point {what}, got {value.dtype}")


def needs_index(name: str, what: str, index: Tensor | None, device: torch.device) -> None:
    """Raise ValueError unless an index is one int32 or int64 on the device."""
    if index is None:
        return
    if index.numel() != 1 or index.dtype not in (torch.int32, torch.int64):
        got = f"{index.dtype}{list(index.shape)}"
        raise ValueError(f"{name} needs one int32 or int64 as {what}, got {got}")
    needs_device(name, what, index, device)


def needs_device(name: str, what: str, value: Tensor, device: torch.device) -> None:
    """Raise ValueError for a tensor on another device."""
    if value.device != device:
        raise ValueError(f"{name} needs {what} on {device}, got one on {value.device}")


def needs_weights(name: str, weights: Tensor, row: Tensor | None, k: int) -> None:
    """Raise ValueError unless weights are f32[k], or a table f32[steps, k] with a row."""
    if row is None:
        if weights.shape != (k,):
            got = tuple(weights.shape)
            raise ValueError(f"{name} needs {k} weights, one per entry, got {got}")
    elif weights.dim() != 2 or weights.shape[0] == 0 or weights.shape[1] != k:
        got = tuple(weights.shape)
        raise ValueError(f"{name} needs a table [steps, {k}] to take a row of, got {got}")
    if weights.dtype != torch.float32 or not weights.is_contiguous():
        raise ValueError(f"{name} needs contiguous fp32 weights, got {weights.dtype}")


def needs_history(name: str, k: int) -> None:
    """Raise ValueError for a ring longer than a kernel reads, or of no entries."""
    if not 1 <= k <= MAX_HISTORY:
        raise ValueError(f"{name} takes a history of 1 to {MAX_HISTORY} entries, got {k}")


def row_of(table: Tensor, row: Tensor | None) -> Tensor:
    """Row `row` of a table, the nearest one where it lies outside; without a row the table itself.

    Waits for no device.
    """
    if row is None:
        return table
    inside = row.reshape(1).clamp(0, len(table) - 1)
    return table.index_select(0, inside).squeeze(0)
