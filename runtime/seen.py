"""Values as they were when seen, to tell later whether another call is of the same generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

GLIMPSE = 256  # entries of the latents that are compared from step to step
RELATED = 0.5  # cosine; a sampler's own steps stay above 0.8, other seeds come near 0

FEW = 16  # entries for each vector of a span; independent noise has a quarter of its length in it

Glimpse = npt.NDArray[np.float32]
Kind = tuple[torch.Size, torch.dtype, torch.device] | None  # of a tensor; None for anything else


class Seen:
    """A value as it was when seen: tells later whether another one is the same.

    Keeps the tensor alive, so that an address cannot be taken for another tensor's; a tensor that
    was written to since is no longer the same. Inference tensors count no writes: some of their
    entries are kept to compare.
    """

    __slots__ = ("glimpse", "value", "version")

    def __init__(self, value: Any, *, read: bool = True) -> None:
        self.value = value
        self.version = version_of(value)
        unversioned = read and isinstance(value, Tensor) and value.is_inference()
        self.glimpse = glimpse(value) if unversioned else None

    def surely(self, other: Any) -> bool:
        """Whether `other` is what was seen, as far as that shows without reading its entries.

        An inference tensor counts no writes: that it holds what it held is for `unread` to tell.
        """
        mine = self.value
        if not isinstance(mine, Tensor) or not isinstance(other, Tensor):
            return type(mine) is type(other) and bool(mine == other)
        if version_of(mine) != self.version:
            return False
        return mine is other or _same_place(mine, other)

    @property
    def unread(self) -> bool:
        """Whether only its entries can tell that what was seen is unchanged."""
        return self.glimpse is not None

    def same(self, other: Any) -> bool:
        """Whether `other` holds what was seen: the same object unchanged, or equal values."""
        mine = self.value
        if not isinstance(mine, Tensor) or not isinstance(other, Tensor):
            return type(mine) is type(other) and bool(mine == other)
        if version_of(mine) != self.version:
            return False
        if self.glimpse is not None and not np.array_equal(self.glimpse, glimpse(mine)):
            return False
        if mine is other or _same_place(mine, other):
            return True
        if mine.shape != other.shape or mine.dtype != other.dtype or mine.device != other.device:
            return False
        return torch.equal(mine, other)


class Conditions:
    """All conditions of a call, by name: another graph may have them in another order."""

    __slots__ = ("names", "seen")

    def __init__(self, values: Sequence[Any], names: tuple[str, ...]) -> None:
        self.names = names
        self.seen = tuple(Seen(v) for v in values)

    def surely(self, values: Sequence[Any], names: tuple[str, ...]) -> bool:
        """Whether all are as they were, as far as that shows without reading entries."""
        if self.names != names or len(self.seen) != len(values):
            return False
        return all(seen.surely(v) for seen, v in zip(self.seen, values, strict=True))

    def changed(self, values: Sequence[Any], names: tuple[str, ...]) -> str:
        """The first condition that is not as it was, "" if all are."""
        if self.names != names or len(self.seen) != len(values):
            return "number of inputs"
        found = (i for i, v in enumerate(values) if not self.seen[i].same(v))
        first = next(found, None)
        return "" if first is None else names[first] if names else f"condition {first}"


class Latents:
    """What the latents of a call looked like: enough to tell whether later ones stem from them.

    A sampler changes its latents a little at each step, while the latents of another generation
    are other noise: that shows in a few hundred entries, which is what keeps two generations that
    share a thread and a prompt apart. Reading them from a CUDA tensor waits for the device, as
    reading the timestep does: with `late` they are filled in afterwards.
    """

    __slots__ = ("entries", "kind", "norm")

    def __init__(self, value: Any, *, late: bool = False) -> None:
        self.kind = kind_of(value)
        self.entries: Glimpse | None = None
        self.norm = 0.0
        if isinstance(value, Tensor) and not late:
            self.fill(glimpse(value))

    def fill(self, entries: Glimpse) -> None:
        """Take in the entries."""
        self.entries = entries
        self.norm = float(entries @ entries) ** 0.5

    def leads_to(self, later: Latents) -> bool:
        """Whether a sampler can have made `later`, of equal shape, from these."""
        if self.entries is None or later.entries is None:
            return True
        product = float(self.entries @ later.entries)
        return product >= RELATED * self.norm * later.norm  # false for NaN

    def spanned_by(self, others: Sequence[Glimpse]) -> bool:
        """Whether most of these latents is a linear combination of others, whatever its weights.

        False where there are too few entries to tell: noise has a part in any span, too.
        """
        mine = self.entries
        if mine is None or not others or len(mine) < FEW * len(others):
            return False
        basis = np.stack(others, axis=1).astype(np.float64)
        if not (np.isfinite(basis).all() and np.isfinite(mine).all()):
            return False
        weights = np.linalg.lstsq(basis, mine.astype(np.float64), rcond=None)[0]
        return bool(np.linalg.norm(basis @ weights) >= RELATED * self.norm)


def kind_of(value: Any) -> Kind:
    """Shape, dtype and device of a tensor, None for anything else."""
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else None


def glimpse(value: Tensor) -> Glimpse:
    """Some of a tensor's entries, evenly spread, as a copy in fp32 on the host."""
    return np.array(entries_of(value).to("cpu", torch.float32).numpy())


def glimpses(values: Sequence[Tensor]) -> list[bytes]:
    """A glimpse of each value as bytes; waits once for each device, however many there are."""
    by_device: dict[torch.device, list[int]] = {}
    for i, value in enumerate(values):
        by_device.setdefault(value.device, []).append(i)
    found = [b""] * len(values)
    for indices in by_device.values():
        parts = [entries_of(values[i]).to(torch.float32) for i in indices]
        read = torch.cat(parts).cpu().split([len(p) for p in parts])
        for i, part in zip(indices, read, strict=True):
            found[i] = part.numpy().tobytes()
    return found


def entries_of(value: Tensor) -> Tensor:
    """The entries of a glimpse, 1-D, where the tensor lies."""
    flat = value.detach().reshape(-1)
    stride = flat.numel() // GLIMPSE | 1  # odd: an even one would meet few channels
    picked = flat[::stride]
    return torch.view_as_real(picked).reshape(-1) if picked.is_complex() else picked


def _same_place(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one and the same memory in one layout."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
        and one.device == other.device
    )


def version_of(value: Any) -> int:
    """The in-place version counter; inference tensors have none and count as unchanged."""
    if not isinstance(value, Tensor) or value.is_inference():
        return 0
    return value._version


class GraphIdentity:
    """Stands for a compiled graph among the conditions of a generation.

    Dynamo goes over to another graph where a flag or an attribute of the model changed, which is a
    change of what the model computes. Where it goes over to a graph of symbolic sizes, the model is
    the same, and where the `text` of both graphs is: latents come in another layout, say, from the
    second step on, because the model's output does.
    """

    def __init__(self, text: Callable[[], str], symbolic: bool) -> None:
        self._make = text
        self._symbolic = symbolic

    @cached_property
    def _text(self) -> str:
        return self._make()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GraphIdentity):
            return False
        return self is other or self._symbolic or other._symbolic or self._text == other._text

    def __hash__(self) -> int:
        return 0


def read_timestep(value: Any) -> float | None:
    """The timestep as one number, None if the samples of a batch stand at different ones.

    A tensor with one number a sample ([B], [B, 1], …) must be uniform. A [B, tokens] tensor
    (image-to-video with a clean first frame) counts as its largest entry; with more than two values
    in it, it is an embedding of the time rather than the time. Reading a CUDA tensor waits for the
    device.
    """
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, Tensor) or value.numel() == 0 or value.is_complex():
        return None
    if value.numel() == 1:
        return float(value.item())
    low, high = torch.aminmax(value)
    if value.numel() == value.shape[0] and bool(low != high):
        return None
    if value.dim() > 1 and not bool(((value == low) | (value == high)).all()):
        return None
    return float(high.item())
