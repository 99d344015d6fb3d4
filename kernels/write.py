"""Write a computed value into a slot's ring, and sketch it for the profile in the same pass.

On the CPU the references run. On CUDA a Triton kernel reads the value once and writes the entry
once: packed, it writes half or a quarter of the value's bytes. For the sketch each program adds up
its own part, and the parts are added in a fixed order, so that the result is the same every time.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .formats import SCALE_BLOCK, Format, Packed, format_of, pack_reference
from .launch import (
    launches,
    launching_on,
    needs_device,
    needs_fp8,
    needs_values,
)

TILE = 1024
"""Numbers in one tile where nothing is sketched; a sketch's tile is as wide as the sketch."""
TILES = 8
"""Fewest tiles that one program writes and sketches, one after another."""
PARTS = 1024
"""Most programs that sketch one row: what they add up apart has to be read once more."""


def write_reference(value: Tensor, slot: Tensor | Packed, position: int) -> None:
    """The meaning of a write: slot[position] = value, cast or packed (`formats.pack_reference`)."""
    data = slot.data if isinstance(slot, Packed) else slot
    numbers, scales = value.to(data.dtype), None
    if isinstance(slot, Packed):
        numbers, scales = pack_reference(value, format_of(slot.data, slot.scales))
    data[position].copy_(numbers)
    if isinstance(slot, Packed) and slot.scales is not None and scales is not None:
        slot.scales[position].copy_(scales)


def sketch_reference(value: Tensor, signs: Tensor, rows: int, width: int) -> Tensor:
    """The meaning of a sketch: z[r, b] = sum of signs[j] * value[r, j] over j = b mod width, in fp32.

    value: [*shape], taken as [rows, size]; signs: int8[at least size], +1 or -1 (Charikar, Chen and
    Farach-Colton, "Finding frequent items in data streams", 2002, with strided buckets). Gives
    f32[rows, width].
    """  # noqa: E501
    flat = value.reshape(rows, -1).to(torch.float32)
    flat = flat * signs[: flat.shape[1]]
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % width))
    return flat.view(rows, -1, width).sum(1)


def write(
    value: Tensor,
    slot: Tensor | Packed | None,
    position: int = 0,
    *,
    signs: Tensor | None = None,
    rows: int = 1,
    width: int = 512,
) -> Tensor | None:
    """Write a value over entry `position` of a ring; with `signs`, sketch it too.

    value: [*shape], fp32/bf16/fp16; one that is not contiguous is copied first. slot: [K, *shape]
    contiguous, in any floating-point type, or packed (`formats.Packed`); None to sketch only.
    position: 0 <= position < K.

    signs: int8[at least size], the sketch's random signs, for value taken as [rows, size]; gives
    the sketch f32[rows, width] then (`sketch_reference`), and None without. It is of the value, not
    of what is stored. Two passes are made where the kernel cannot do with one: the width is not 128
    times a power of two, or the format has scales and a row is not a whole number of runs of 128.
    Raises ValueError for what does not fit together.
    """
    needs_values("write", "value", value)
    if slot is None and signs is None:
        raise ValueError("write got neither a slot nor signs; nothing to do")
    if slot is not None:
        _check_slot(value, slot, position)
    if signs is not None:
        _check_sketch(value, signs, rows, width)
    if launches(value):
        return _write_triton(value, slot, position, signs=signs, rows=rows, width=width)
    if slot is not None:
        write_reference(value, slot, position)
    return None if signs is None else sketch_reference(value, signs, rows, width)


def _check_slot(value: Tensor, slot: Tensor | Packed, position: int) -> None:
    data = slot.data if isinstance(slot, Packed) else slot
    if data.shape[1:] != value.shape:
        got, want = tuple(value.shape), tuple(data.shape[1:])
        raise ValueError(f"write got a value of shape {got}, the slot's entries are {want}")
    if not data.is_contiguous():
        raise ValueError(f"write takes a contiguous slot, got strides {data.stride()}")
    needs_device("write", "the slot", data, value.device)
    if isinstance(slot, Packed):
        format_of(slot.data, slot.scales)
        needs_fp8(data.dtype, data.device)
    elif not data.dtype.is_floating_point:
        raise ValueError(f"write takes a floating-point slot or a packed one, got {data.dtype}")
    if not 0 <= position < len(data):
        raise ValueError(f"write got position {position} in a slot of {len(data)} entries")


def _check_sketch(value: Tensor, signs: Tensor, rows: int, width: int) -> None:
    if rows < 1 or value.numel() % rows:
        raise ValueError(f"write cannot take a value of {value.numel()} numbers as {rows} rows")
    if width < 1:
        raise ValueError(f"write needs a sketch of at least one number, got {width}")
    size = value.numel() // rows
    plain = signs.dtype == torch.int8 and signs.dim() == 1 and signs.is_contiguous()
    if not plain or len(signs) < size:
        got = f"{signs.dtype}{list(signs.shape)}"
        raise ValueError(f"write needs int8 signs for {size} numbers, got {got}")
    needs_device("write", "signs", signs, value.device)


def _write_triton(
    value: Tensor,
    slot: Tensor | Packed | None,
    position: int,
    *,
    signs: Tensor | None = None,
    rows: int = 1,
    width: int = 512,
) -> Tensor | None:
    value = value.contiguous()
    if signs is None:
        _launch(value, slot, position)
        return None
    runs, rest = divmod(width, SCALE_BLOCK)
    if rest or runs & (runs - 1):  # no power of two of runs: tiles would not line up with buckets
        if slot is not None:
            _launch(value, slot, position)
        return sketch_reference(value, signs, rows, width)
    size = value.numel() // rows
    scaled = isinstance(slot, Packed) and slot.scales is not None
    if scaled and rows > 1 and size % SCALE_BLOCK:  # runs of scales go on from row to row
        _launch(value, slot, position)
        slot = None
    return _launch(value, slot, position, signs=signs, rows=rows, tile=width)


def _launch(
    value: Tensor,
    slot: Tensor | Packed | None,
    position: int,
    *,
    signs: Tensor | None = None,
    rows: int = 1,
    tile: int = TILE,
) -> Tensor | None:
    data, scales = (slot.data, slot.scales) if isinstance(slot, Packed) else (slot, None)
    kind: Format | None = None if scales is None or data is None else format_of(data, scales)
    if data is not None:
        data = data[position]
        scales = None if scales is None else scales[position]
    size = value.numel() // rows
    tiles = 1 if signs is None else TILES
    while signs is not None and tile * tiles * PARTS < size:
        tiles *= 2
    chunks = -(-size // (tile * tiles))
    parts = None
    if signs is not None:
        parts = torch.empty(rows, chunks, tile, dtype=torch.float32, device=value.device)
    with launching_on(value.device):
        write_kernel()[(chunks, rows)](
            value,
            data,
            scales,
            signs,
            parts,
            size,
            LIMIT=None if kind is None else kind.limit,
            FLOATS=data is None or data.dtype.is_floating_point,
            RUNS=tile // SCALE_BLOCK,
            SCALE_BLOCK=SCALE_BLOCK,
            TILES=tiles,
        )
    return None if parts is None else parts.sum(1)  # no atomics: the same order every time


@functools.cache
def write_kernel() -> Any:
    """The jitted kernel. Built on first use: importing triton costs a CPU-only process nothing."""
    from ._write_kernel import write_kernel as kernel

    return kernel
