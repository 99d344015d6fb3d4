"""Storage formats of a slot: what its numbers are kept as, and how they are packed and unpacked.

`bf16` and `fp16` are casts. `fp8_e4m3` and `int8` keep one fp32 scale for each run of 128 numbers
along the flat tensor, the largest magnitude of the run over the largest of the format (448, 127):
per-block absmax scaling, as in 8-bit optimisers (Dettmers et al., arXiv 2110.02861).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SCALE_BLOCK = 128
"""Numbers that share one scale."""
SMALLEST_SCALE = 2.0**-126
"""The smallest normal fp32 number: its reciprocal is finite, and a run of zeros stays zero."""


@dataclass(frozen=True)
class Format:
    """A storage format: the type of its numbers and, where they are scaled, their largest."""

    name: str
    dtype: torch.dtype
    limit: float | None = None

    @property
    def scaled(self) -> bool:
        """Whether there is a scale for each run of `SCALE_BLOCK` numbers."""
        return self.limit is not None

    def nbytes(self, numbers: int) -> int:
        """Bytes of one entry of so many numbers, scales included."""
        scales = 4 * blocks_of(numbers) if self.scaled else 0
        return numbers * self.dtype.itemsize + scales


FORMATS = {
    made.name: made
    for made in (
        Format("bf16", torch.bfloat16),
        Format("fp16", torch.float16),
        Format("fp8_e4m3", torch.float8_e4m3fn, 448.0),
        Format("int8", torch.int8, 127.0),
    )
}


def format_for(name: str | None, dtype: torch.dtype) -> Format | None:
    """The format to keep values of `dtype` in; None where they stay as they are.

    That is so without a name, for what is no floating-point number, and where a value is no larger
    in its own type. Raises ValueError for a name that is none of `FORMATS`.
    """
    if name is None:
        return None
    if name not in FORMATS:
        raise ValueError(f"no storage format {name!r}; there are {', '.join(FORMATS)}")
    found = FORMATS[name]
    if not dtype.is_floating_point or dtype.itemsize <= found.dtype.itemsize:
        return None
    return found


def format_of(data: Tensor, scales: Tensor | None) -> Format:
    """The format of packed numbers; raises ValueError where there is none such."""
    for found in FORMATS.values():
        if found.dtype == data.dtype and found.scaled == (scales is not None):
            return found
    how = "with" if scales is not None else "without"
    raise ValueError(f"no storage format keeps {data.dtype} {how} scales")


def blocks_of(numbers: int) -> int:
    """How many runs of `SCALE_BLOCK` so many numbers make, the last one perhaps shorter."""
    return -(-numbers // SCALE_BLOCK)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A ring in a storage format.

    data: [K, *shape] in the format's type; scales: f32[K, ceil(numel(shape) / 128)], None for a
    format without; `dtype` is what an entry unpacks to. Two are equal only if they are one: a
    captured graph holds on to the addresses of this one.
    """

    data: Tensor
    scales: Tensor | None
    dtype: torch.dtype

    @classmethod
    def empty(cls, kind: Format, history: int, like: Tensor) -> Packed:
        """A ring of `history` entries of zeros, for values of the shape and dtype of `like`."""
        data = torch.zeros((history, *like.shape), dtype=kind.dtype, device=like.device)
        scales = None
        if kind.scaled:
            shape = (history, blocks_of(like.numel()))
            scales = torch.zeros(shape, dtype=torch.float32, device=like.device)
        return cls(data, scales, like.dtype)

    @property
    def shape(self) -> torch.Size:
        """[K, *shape]."""
        return self.data.shape

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Bytes of numbers and scales."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def entry(self, index: int) -> Tensor:
        """Entry `index` unpacked: [*shape] in `dtype`."""
        scales = None if self.scales is None else self.scales[index]
        return unpack_reference(self.data[index], scales, self.dtype)

    def unpack(self) -> Tensor:
        """The whole ring unpacked: [K, *shape] in `dtype`."""
        return torch.stack([self.entry(k) for k in range(len(self.data))])


def pack_reference(value: Tensor, kind: Format) -> tuple[Tensor, Tensor | None]:
    """The meaning of packing: numbers [*shape] in the format's type, f32[blocks] scales or None.

    With scales: scale = max(amax / limit, 2^-126) over each run of 128, number = x * (1 / scale),
    for int8 rounded half to even. A run with NaN or infinity in it gets an infinite scale and
    unpacks to infinity throughout, so that it does not pass for finite. The error of x is at most
    half a unit of the scale for int8, |x| / 16 + scale * 2^-10 for fp8.
    """
    if kind.limit is None:
        return value.to(kind.dtype), None
    flat = value.reshape(-1).to(torch.float32)
    runs = torch.nn.functional.pad(flat, (0, -len(flat) % SCALE_BLOCK)).view(-1, SCALE_BLOCK)
    largest = torch.where(runs.isnan(), torch.inf, runs.abs()).amax(1)
    # By a tensor: by a number a CUDA device multiplies with the reciprocal, which is not as exact.
    scales = (largest / largest.new_full((), kind.limit)).clamp_min(SMALLEST_SCALE)
    numbers = runs * scales.reciprocal()[:, None]
    numbers = torch.where(scales[:, None].isinf(), 1.0, numbers).clamp(-kind.limit, kind.limit)
    if not kind.dtype.is_floating_point:
        numbers = numbers.round()
    packed = numbers.flatten()[: len(flat)].to(kind.dtype)
    return packed.view(value.shape), scales


def unpack_reference(numbers: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The meaning of unpacking: numbers [*shape] times the scale of their run, cast to `dtype`."""
    if scales is None:
        return numbers.to(dtype)
    flat = numbers.reshape(-1).to(torch.float32)
    spread = scales.repeat_interleave(SCALE_BLOCK)[: len(flat)]
    return (flat * spread).to(dtype).view(numbers.shape)
