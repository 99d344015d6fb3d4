"""What a plan or profile belongs to: the architecture, and separately the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .ir import InputKind, StepGraph, kind_of, placeholders, value_of
from .names import module_path, source_name
from .printer import op_name, type_text


def model_signature(graph: StepGraph) -> str:
    """16 hex digits naming the model's architecture.

    Covers name, shape and dtype of every parameter; for a model without parameters, its ops. The
    same at every batch size, resolution and text length, so a plan can say "for another shape"
    apart from "for another model".
    """
    lines: list[str] = []
    for node in placeholders(graph.graph):
        if kind_of(node) is InputKind.PARAMETER and isinstance(value := value_of(node), Tensor):
            lines.append(f"{source_name(node)} {type_text(value.shape, value.dtype)}")
    if not lines:
        lines = [
            f"{op_name(n.target)} @{module_path(n)}"
            for n in graph.graph.nodes
            if n.op.startswith("call")
        ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def weight_fingerprint(parameters: Sequence[object]) -> str:
    """16 hex digits that change when the weights do: a few numbers of each parameter.

    Tells fine-tunes and adapters apart for the plan cache; no proof of equality. Fake tensors
    contribute their shapes only.
    """
    digest = hashlib.sha256()
    for value in parameters:
        if not isinstance(value, Tensor):
            continue
        digest.update(str(tuple(value.shape)).encode())
        real = not hasattr(value, "fake_mode") and value.device.type != "meta"
        if real and value.is_floating_point() and value.numel():
            with torch.no_grad():
                flat = value.detach().reshape(-1)
                picked = flat[:: max(1, flat.numel() // 16)][:16].to("cpu", torch.float32)
            digest.update(picked.numpy().tobytes())
    return digest.hexdigest()[:16]
