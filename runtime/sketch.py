"""Count-sketch: a short vector whose inner products estimate those of the long one."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

SEED = 0x5EED


def sketch(value: Tensor, width: int) -> Tensor:
    """Shorten a value to f32[width] so that inner products stay the same in expectation.

    The map is the same at every step. Coordinate j goes with a fixed random sign into bucket
    j mod `width` (Charikar, Chen and Farach-Colton, 2002; strided buckets make it one multiply and
    one sum). `width=0` gives the flat value itself: exact inner products. Runs on the value's
    device, accumulates in fp32.
    """
    flat = value.detach().reshape(-1).to(torch.float32)
    if width == 0 or flat.numel() <= width:
        return flat.clone()
    signs = _signs(flat.numel(), width, flat.device)
    padded = signs.numel()
    if padded != flat.numel():
        flat = torch.nn.functional.pad(flat, (0, padded - flat.numel()))
    return (flat * signs).view(-1, width).sum(0)


@functools.lru_cache(maxsize=16)
def _signs(numel: int, width: int, device: torch.device) -> Tensor:
    padded = -(-numel // width) * width
    generator = torch.Generator().manual_seed(SEED)
    bits = torch.randint(0, 2, (padded,), generator=generator, dtype=torch.int8)
    return (bits * 2 - 1).to(device)
