"""What a plan or profile belongs to: the architecture, and separately the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .ir import InputKind, StepGraph, kind_of, placeholders, value_of
from .names import module_path, source_name
from .printer import op_name, type_text

ADAPTER, WRAPPED = ".lora_", ".base_layer"  # how peft names its parameters and the layer's own


def model_signature(graph: StepGraph) -> str:
    """16 hex digits naming the model's architecture.

    Covers name, shape and dtype of every parameter; for a model without parameters, its ops. The
    same at every batch size, resolution and text length, so a plan can say "for another shape"
    apart from "for another model". Adapters are other weights of one architecture: those that peft
    has put around a layer do not count, and the layer keeps its name.
    """
    lines: list[str] = []
    for node in placeholders(graph.graph):
        name = source_name(node)
        if ADAPTER in name or kind_of(node) is not InputKind.PARAMETER:
            continue
        if isinstance(value := value_of(node), Tensor):
            lines.append(f"{name.replace(WRAPPED, '')} {type_text(value.shape, value.dtype)}")
    if not lines:
        lines = [
            f"{op_name(n.target)} @{module_path(n)}"
            for n in graph.graph.nodes
            if n.op.startswith("call")
        ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def graph_text(graph: StepGraph) -> str:
    """A digest of what a graph computes, whatever the layout of its inputs.

    Graphs of one model with equal digests are one function. A graph with tensors of its own besides
    inputs has a digest of its own.
    """
    lines: list[str] = []
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            return f"{id(graph)}"
        value = value_of(node) if node.op == "placeholder" else None
        what = type_text(value.shape, value.dtype) if isinstance(value, Tensor) else ""
        lines.append(f"{node.name} {op_name(node.target)} {node.args} {node.kwargs} {what}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def weight_fingerprint(parameters: Sequence[object]) -> str:
    """16 hex digits that change when the weights do: a few numbers of each parameter.

    Tells fine-tunes and adapters apart; no proof of equality. Tensors made of others (quantised
    weights) count by their parts; fake ones contribute their shapes only. Waits once for each
    device.
    """
    digest = hashlib.sha256()
    picked: dict[torch.device, list[Tensor]] = {}
    for value in parameters:
        for plain in plain_tensors(value):
            digest.update(f"{tuple(plain.shape)} {plain.dtype}".encode())
            real = not hasattr(plain, "fake_mode") and plain.device.type != "meta"
            if real and plain.numel() and not plain.is_complex():
                flat = plain.detach().reshape(-1)
                some = flat[:: max(1, flat.numel() // 16)][:16]
                picked.setdefault(plain.device, []).append(some.to(torch.float32))
    for tensors in picked.values():
        digest.update(torch.cat(tensors).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def plain_tensors(value: object) -> Iterator[Tensor]:
    """A tensor, or the plain ones that a wrapper subclass keeps."""
    if not isinstance(value, Tensor):
        return
    inner = getattr(value, "__tensor_flatten__", None)
    if inner is None:
        yield value
        return
    for name in inner()[0]:
        yield from plain_tensors(getattr(value, name))
