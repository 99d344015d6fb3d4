"""Hoisted values: run a prologue only when what it reads has changed."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..passes.signature import plain_tensors
from ..passes.symbolic import tensor_bytes
from .seen import glimpses, version_of

BY_VALUE_BYTES = 64 * 1024  # smaller CPU tensors are told apart by content, larger by identity


@dataclass
class Entry:
    """Results of one run.

    Inputs known by identity are held weakly: when one dies, so does the entry, and its address
    cannot be taken for another tensor's.
    """

    values: tuple[Tensor, ...]
    nbytes: int
    token: object  # tells entries apart without holding them
    inputs: list[weakref.ref[Tensor]] = field(default_factory=list[weakref.ref[Tensor]])


class PrologueMemo:
    """Remembers a prologue's results by its inputs, least recently used first out.

    Weights and large tensors are known by identity, address, layout and in-place version, small
    CPU tensors and numbers by content, wrappers (quantised weights) by what they are made of.
    Anything else that cannot be keyed (a tensor without a version counter) makes the prologue run
    again: slower, never stale. Results are the memo's own storage; who hands one out must copy it.
    """

    def __init__(self, run: Callable[..., Any], budget: int) -> None:
        self.run = run
        self._budget = budget
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._weights: dict[int, tuple[weakref.ref[Tensor], bytes]] = {}
        self._lock = threading.RLock()  # weak references may die, and call back, at any time
        self.nbytes = 0

    def get(self, inputs: Sequence[Any]) -> tuple[tuple[Tensor, ...], bool]:
        """The prologue's results for these inputs, and whether they were remembered."""
        key = _key(inputs) if self._budget else None
        if key is None:
            return tuple(self.run(*inputs)), False
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry.values, True
        values = _unshared(self.run(*inputs), inputs)
        size = sum(tensor_bytes(v) for v in values)
        if size <= self._budget:
            self._put(key, Entry(values, size, object()), inputs)
        return values, False

    def revalidate(self) -> None:
        """Forget everything if weights were written through `.data`, which counts no version.

        Compares a few entries of each weight, read together: the host waits for a device once.
        Merging an adapter changes all of them.
        """
        with self._lock:
            known = [(w, seen) for ref, seen in self._weights.values() if (w := ref()) is not None]
        if glimpses([w for w, _ in known]) != [seen for _, seen in known]:
            self.clear()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._weights.clear()
            self.nbytes = 0

    def _put(self, key: Hashable, entry: Entry, inputs: Iterable[Any]) -> None:
        token = entry.token  # the callback must not hold the entry: a cycle would outlive eviction
        memo = weakref.ref(self)

        def drop(_: object) -> None:
            if (alive := memo()) is not None:
                alive._drop(key, token)

        with self._lock:
            new: list[Tensor] = []
            for value in inputs:
                if not isinstance(value, Tensor) or _by_value(value):
                    continue
                entry.inputs.append(weakref.ref(value, drop))
                if isinstance(value, torch.nn.Parameter):
                    new += [part for part in plain_tensors(value) if not self._watches(part)]
            for part, seen in zip(new, glimpses(new), strict=True):
                self._weights[id(part)] = (weakref.ref(part), seen)
            if key in self._entries:  # another thread was faster
                return
            self._entries[key] = entry
            self.nbytes += entry.nbytes
            while self.nbytes > self._budget:
                _, old = self._entries.popitem(last=False)
                self.nbytes -= old.nbytes

    def _watches(self, weight: Tensor) -> bool:
        known = self._weights.get(id(weight))
        return known is not None and known[0]() is weight

    def _drop(self, key: Hashable, token: object) -> None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.token is token:
                del self._entries[key]
                self.nbytes -= entry.nbytes


def storages(values: Iterable[Any]) -> set[int]:
    """Where the tensors among `values` lie: equal addresses mean shared storage."""
    return {t.untyped_storage().data_ptr() for v in values for t in plain_tensors(v)}


def _unshared(values: Iterable[Tensor], inputs: Sequence[Any]) -> tuple[Tensor, ...]:
    """The values, copied where they are views of an input: the caller may write to that."""
    taken = storages(inputs)
    return tuple(v.clone() if storages([v]) & taken else v for v in values)


def _key(inputs: Sequence[Any]) -> Hashable | None:
    parts: list[Hashable] = []
    for value in inputs:
        if not isinstance(value, Tensor):
            parts.append((type(value), value))
            continue
        if type(value) not in (Tensor, torch.nn.Parameter):
            inner = list(plain_tensors(value))
            part = _key(inner) if inner and inner[0] is not value else None
            if part is None:
                return None  # a subclass may keep its data anywhere
            parts.append((type(value), value.shape, value.dtype, part))
            continue
        layout = (value.shape, value.stride(), value.dtype, value.device)
        if _by_value(value):
            parts.append((*layout, _content(value)))
        elif value.is_inference():
            return None
        else:
            parts.append((*layout, value.data_ptr(), version_of(value), id(value)))
    return tuple(parts)


def _content(value: Tensor) -> bytes:
    flat = value.detach().reshape(-1)
    if flat.stride(0) != 1:  # an expanded scalar has stride 0 and yet counts as contiguous
        flat = torch.empty(flat.shape, dtype=flat.dtype).copy_(flat)
    return flat.view(torch.uint8).numpy().tobytes()


def _by_value(value: Tensor) -> bool:
    return (
        value.device.type == "cpu"
        and not isinstance(value, torch.nn.Parameter)
        and 0 < tensor_bytes(value) <= BY_VALUE_BYTES
        and value.layout == torch.strided
        and not (value.is_complex() or value.is_quantized)
    )
