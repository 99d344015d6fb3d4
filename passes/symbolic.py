"""Sizes without guards.

Under `torch.compile(dynamic=True)` a size is a SymInt, and `int(size)` or `size == 4` makes Dynamo
specialise the whole program to that size. Passes want a size only to weigh or to compare; these
helpers read the hint (the size that was traced) and leave no guard behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, overload

import torch
from torch import Tensor

Size = int | torch.SymInt


@overload
def hint(value: Size) -> int: ...
@overload
def hint(value: torch.SymFloat) -> float: ...
def hint(value: Size | torch.SymFloat) -> int | float:
    """The traced size or number; 0 for one that only running the program can tell."""
    if isinstance(value, torch.SymFloat):
        return float(value.node.hint or 0.0)
    if isinstance(value, torch.SymInt):
        return int(value.node.hint or 0)
    return int(value)


def hints(sizes: Iterable[Size]) -> tuple[int, ...]:
    """The traced sizes."""
    return tuple(hint(s) for s in sizes)


def shape_of(value: Any) -> tuple[int, ...]:
    """The traced shape of a tensor, () for anything else."""
    return hints(value.shape) if isinstance(value, Tensor) else ()


def stride_of(value: Tensor) -> tuple[int, ...]:
    """The traced strides of a strided tensor."""
    return hints(value.stride())


def numel_of(value: Tensor) -> int:
    """Number of elements at the traced shape."""
    count = 1
    for size in value.shape:
        count *= hint(size)
    return count


def tensor_bytes(value: Any) -> int:
    """Bytes of a (fake) tensor at the traced shape, or of all tensors in a tuple."""
    if isinstance(value, Tensor):
        return numel_of(value) * value.element_size()
    if isinstance(value, (tuple, list)):
        return sum(tensor_bytes(v) for v in value)
    return 0


def is_static(value: Tensor) -> bool:
    """Whether no size of the tensor is symbolic."""
    return not any(isinstance(s, torch.SymInt) for s in value.shape)


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one traced shape have the same strides; sizes of one have any."""
    sizes = zip(shape_of(a), stride_of(a), stride_of(b), strict=True)
    return all(size <= 1 or left == right for size, left, right in sizes)


def is_dense(value: Tensor) -> bool:
    """Whether the traced layout is the contiguous one; sizes of one may have any stride."""
    expected = 1
    for size, stride in zip(reversed(shape_of(value)), reversed(stride_of(value)), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= max(size, 1)
    return True


def fresh_like(value: Any) -> Any:
    """A fake tensor like `value` with storage of its own; anything but a fake tensor as it is."""
    mode = getattr(value, "fake_mode", None)
    if mode is None:
        return value
    with mode:
        return torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=value.device
        )
