"""What is kept of a value: a count-sketch, and a few of its elements as they are.

The sketch is a short vector whose inner products estimate those of the long one. It adds elements
up; what a sampler does to each by itself (to clip it) is seen in single ones alone.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..kernels.write import write

SEED = 0x5EED
MOST_ROWS = 64
"""Batches up to this size are sketched sample by sample, larger ones as one vector."""
ELEMENTS = 64
"""Elements kept of each sample."""


def rows_of(value: Tensor) -> int:
    """How many rows `sketch_rows` gives: one for each entry of the leading dimension."""
    return value.shape[0] if value.dim() > 1 and 0 < value.shape[0] <= MOST_ROWS else 1


def sketch_rows(value: Tensor, width: int, rows: int) -> Tensor:
    """Sketch a batch [rows, ...] sample by sample, side by side in one f32[rows * width'].

    width' is `width`, or what a sample holds where that is less. Sample by sample no error of one
    sample's inner products gets into another's, and one can be judged without the others.
    """
    value = value.detach()
    size = value.numel() // rows
    if width == 0 or size <= width:
        return value.reshape(-1).to(torch.float32, copy=True)
    signs = signs_of(size, width, value.device)
    made = write(value, None, signs=signs, rows=rows, width=width)
    assert made is not None
    return made.flatten()


def sketch(value: Tensor, width: int) -> Tensor:
    """Shorten a value to f32[width] so that inner products stay the same in expectation.

    The map is the same at every step. Coordinate j goes with a fixed random sign into bucket
    j mod `width` (Charikar, Chen and Farach-Colton, 2002; strided buckets make it one multiply and
    one sum). `width=0` gives the flat value itself: exact inner products. Runs on the value's
    device, accumulates in fp32.
    """
    return sketch_rows(value, width, 1)


@functools.lru_cache(maxsize=16)
def signs_of(numel: int, width: int, device: torch.device) -> Tensor:
    """The signs of so many coordinates: int8 of +1 or -1, as many as fill whole rows of buckets."""
    padded = -(-numel // width) * width
    generator = torch.Generator().manual_seed(SEED)
    bits = torch.randint(0, 2, (padded,), generator=generator, dtype=torch.int8)
    return (bits * 2 - 1).to(device)


def elements(value: Tensor, rows: int) -> Tensor:
    """`ELEMENTS` of each sample of a batch [rows, ...], or all where it has no more.

    f32[rows * E], at the same random places in each sample and at every step.
    """
    places = _places(value.numel() // rows, rows, value.device)
    return torch.take(value.detach(), places).to(torch.float32)


@functools.lru_cache(maxsize=16)
def _places(size: int, rows: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    places = torch.arange(size)
    if size > ELEMENTS:
        places = torch.randint(size, (ELEMENTS,), generator=generator)
    return (places + size * torch.arange(rows)[:, None]).flatten().to(device)
