"""Real diffusion transformers by name, at real size, without weights: for analysis.

    >>> model = zoo.build("flux-dev", height=1024, width=1024)
    >>> with FlopCounterMode() as count:
    ...     model.module(**model.kwargs)

Modules are diffusers' own classes on the meta device; the table is in `zoo_entries`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .zoo_entries import ARCHITECTURES, Architecture
from .zoo_inputs import Size


@dataclass(frozen=True)
class ZooInfo:
    """What was built: the entry, the size asked for, and the number of parameters."""

    name: str
    architecture: Architecture
    height: int
    width: int
    frames: int
    batch: int
    parameters: int


@dataclass(frozen=True)
class ZooModel:
    """A module, the keyword arguments of one forward call, and what they stand for."""

    module: nn.Module
    kwargs: dict[str, Any] = field(repr=False)
    info: ZooInfo


def names() -> list[str]:
    """Return the names that `build` knows."""
    return list(ARCHITECTURES)


def build(
    name: str,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "meta",
) -> ZooModel:
    """Build an architecture and example inputs of one forward call.

    Args:
        name: one of `names()`.
        height: pixels; the pipeline's default if not given. Likewise `width` and `frames`.
        width: pixels.
        frames: frames of a video; 1 for still images.
        batch: rows of the call. Where guidance is "batched", a guided step has two per sample.
        dtype: of the weights (parts that diffusers keeps in fp32 excepted) and float inputs.
        device: "meta" allocates nothing; elsewhere weights and inputs are random.

    Raises:
        ValueError: no such name, or a size that the model cannot take.
        ImportError: diffusers is missing.

    """
    entry = ARCHITECTURES.get(name)
    if entry is None:
        close = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no architecture {name!r}; {hint}there are {', '.join(ARCHITECTURES)}")
    size = Size(
        height or entry.height,
        width or entry.width,
        frames or entry.frames,
        batch,
        dtype,
        torch.device(device),
    )
    _check(name, entry, size)
    with size.device:
        module = _diffusers_class(entry.cls)(**entry.config).eval()
    # Some constructors make a tensor without regard to the device context (SVD's blend factors).
    module.to(size.device)
    _cast(module, dtype)
    count = sum(p.numel() for p in module.parameters())
    info = ZooInfo(name, entry, size.height, size.width, size.frames, batch, count)
    return ZooModel(module, entry.inputs(size), info)


def _check(name: str, entry: Architecture, size: Size) -> None:
    wrong: list[str] = []
    if min(size.height, size.width, size.frames, size.batch) < 1:
        wrong.append("sizes are positive")
    if size.height % entry.multiple or size.width % entry.multiple:
        wrong.append(f"height and width are multiples of {entry.multiple}")
    if entry.square and size.height != size.width:
        wrong.append("height equals width")
    if entry.frames == 1 and size.frames != 1:
        wrong.append("it makes still images (frames = 1)")
    elif entry.frame_multiple and (size.frames - 1) % entry.frame_multiple:
        wrong.append(f"frames - 1 is a multiple of {entry.frame_multiple}")
    if wrong:
        asked = f"{size.height}x{size.width}, {size.frames} frames, batch {size.batch}"
        raise ValueError(f"{name} cannot take {asked}: {'; '.join(wrong)}")


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast as diffusers' loader does: some parts of some models stay in fp32."""
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and kept.isdisjoint(name.split(".")):
            tensor.data = tensor.data.to(dtype)


def _diffusers_class(name: str) -> type[nn.Module]:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("the zoo builds diffusers' classes: ditcache[diffusers]") from error
    return getattr(diffusers, name)
