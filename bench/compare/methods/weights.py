"""Other weights for the pipeline's denoiser: from a folder, a safetensors file or the hub."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ...checksums import WeightsError, locate
from ..subjects import AS_IT_IS, Subject
from .base import MethodError, Setup


def given(subject: Subject, role: str, method: str) -> Path | str:
    """Where the weights of this role are; raises MethodError if nobody said."""
    where = subject.weights.get(role)
    if where is None:
        raise MethodError(
            f"{method} needs {role} weights for {subject.name}: give --weights {role}=PATH_OR_HUB"
        )
    return where if where == AS_IT_IS else find(where, method)


def find(where: str, method: str) -> Path:
    """Where these weights are on this machine; raises MethodError if nowhere."""
    try:
        return locate(where)
    except WeightsError as error:
        raise MethodError(f"{method}: {error}") from error


def apply_arguments(subject: Subject, role: str, where: Path | str, setup: Setup) -> None:
    """Set what the call needs with these weights: the subject's own, or `call.json` beside them.

    A distilled model often has its guidance built in, e.g. {"guidance_scale": 1.0}.
    """
    beside = Path(where) / "call.json"
    found = dict(subject.arguments_with.get(role, {}))
    if where == AS_IT_IS:
        setup.notes.append("the baseline's weights in the place of distilled ones")
    if beside.is_file():
        found |= json.loads(beside.read_text())
    subject.arguments |= found
    setup.notes += [f"{name} {value}" for name, value in found.items()]


def replace_denoiser(subject: Subject, where: Path | str, method: str) -> None:
    """Load these weights into the denoiser (the first, if the pipeline has two)."""
    if where == AS_IT_IS:
        return
    name, module = next(iter(subject.denoisers.items()))
    try:
        if isinstance(where, Path) and where.is_file():
            from safetensors.torch import load_file

            module.load_state_dict(load_file(where), strict=True)
            return
        folder = Path(where) / name
        source = folder if folder.is_dir() else where
        dtype = next(module.parameters()).dtype
        loaded = type(module).from_pretrained(str(source), dtype=dtype)  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise MethodError(f"{method}: {where} does not fit the denoiser ({first})") from error
    assert isinstance(loaded, torch.nn.Module)
    setattr(subject.pipeline, name, loaded.to(subject.device).eval())
