"""Two plain ops that passes put in where a model wrote in place or relied on a memory layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def functional_setitem(base: Tensor, index: Any, value: Any) -> Tensor:
    """`base[index] = value` without mutation: gives the changed copy, in base's shape and dtype."""
    out = base.clone()
    out[index] = value
    return out


def relayout(value: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The same values in another memory layout: what follows a forecast expects the traced one."""
    out = torch.empty_strided(value.shape, stride, dtype=value.dtype, device=value.device)
    return out.copy_(value)
