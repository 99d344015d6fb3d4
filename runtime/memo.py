"""Hoisted values: run a prologue only when what it reads has changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..passes.ir import tensor_bytes
from .clock import version_of

BY_VALUE_BYTES = 64 * 1024  # smaller CPU tensors are told apart by content, larger by identity


@dataclass
class Entry:
    """Results of one run, with the inputs kept alive so that their identity stays theirs."""

    inputs: tuple[Any, ...]
    values: tuple[Tensor, ...]
    nbytes: int


class PrologueMemo:
    """Remembers a prologue's results by its inputs, least recently used first out.

    Weights and large tensors are known by address, shape and in-place version, small CPU tensors
    and numbers by content. Anything else that cannot be keyed (a tensor without a version counter)
    makes the prologue run again: slower, never stale.
    """

    def __init__(self, run: Callable[..., Any], budget: int) -> None:
        self._run = run
        self._budget = budget
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self.nbytes = 0

    def get(self, inputs: Sequence[Any]) -> tuple[tuple[Tensor, ...], bool]:
        """The prologue's results for these inputs, and whether they were remembered."""
        key = _key(inputs)
        if key is None:
            return tuple(self._run(*inputs)), False
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            return entry.values, True
        values = tuple(self._run(*inputs))
        size = sum(tensor_bytes(v) for v in values)
        if size <= self._budget:
            self._entries[key] = Entry(tuple(inputs), values, size)
            self.nbytes += size
            while self.nbytes > self._budget:
                _, old = self._entries.popitem(last=False)
                self.nbytes -= old.nbytes
        return values, False

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.nbytes = 0


def _key(inputs: Sequence[Any]) -> Hashable | None:
    parts: list[Hashable] = []
    for value in inputs:
        if not isinstance(value, Tensor):
            parts.append((type(value), value))
            continue
        layout = (value.shape, value.stride(), value.dtype, value.device)
        if _by_value(value):
            raw = value.contiguous().view(-1).view(torch.uint8) if value.numel() else value
            parts.append((*layout, raw.numpy().tobytes()))
        elif value.is_inference():
            return None
        else:
            parts.append((*layout, value.data_ptr(), version_of(value), id(value)))
    return tuple(parts)


def _by_value(value: Tensor) -> bool:
    return (
        value.device.type == "cpu"
        and not isinstance(value, torch.nn.Parameter)
        and tensor_bytes(value) <= BY_VALUE_BYTES
        and not value.is_complex()
    )
