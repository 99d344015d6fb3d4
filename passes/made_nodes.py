"""Nodes that the rewriting makes, each with the fake value that its op gives."""

from __future__ import annotations

import operator
from typing import cast

import torch
from torch import Tensor, fx

from .effects import recompute
from .functional_ops import relayout
from .ir import Depends, InputKind, kind_of, set_value, value_of
from .symbolic import is_static, same_layout, stride_of


def delta(graph: fx.Graph, value: fx.Node, base: fx.Node | None) -> fx.Node:
    """`value - base` in value's dtype; `value` itself without a base."""
    if base is None:
        return value
    base = in_dtype(graph, base, cast(Tensor, value_of(value)).dtype)
    return computed(graph.call_function(operator.sub, (value, base)))


def in_dtype(graph: fx.Graph, value: fx.Node, dtype: torch.dtype) -> fx.Node:
    """`value` converted to a dtype; `value` itself where it has it."""
    if cast(Tensor, value_of(value)).dtype == dtype:
        return value
    return computed(graph.call_method("to", (value, dtype)))


def computed(node: fx.Node) -> fx.Node:
    """A node that a pass made, with the fake value that its op gives."""
    node.meta["depends"] = Depends.LATENT
    set_value(node, recompute(node))
    return node


def as_traced(made: fx.Node, traced: Tensor) -> fx.Node:
    """The forecast in the memory layout that the traced value has; what follows may rely on it."""
    if not is_static(traced) or same_layout(cast(Tensor, value_of(made)), traced):
        return made
    stride = stride_of(traced)
    laid = made.graph.call_function(relayout, (made, stride))
    with getattr(traced, "fake_mode", torch.no_grad()):
        fresh = torch.empty_strided(traced.shape, stride, dtype=traced.dtype, device=traced.device)
    set_value(laid, fresh)
    return laid


def state_input(  # noqa: PLR0917
    graph: fx.Graph,
    prefix: str,
    part: str,
    kind: InputKind,
    like: tuple[int, torch.dtype],
    beside: Tensor,
) -> fx.Node:
    """An input for what a device knows of the generation; of one size and dtype, on the device."""
    node = graph.placeholder(f"{prefix}_{part}")
    node.meta.update(kind=kind, depends=Depends.LATENT, part=part)
    size, dtype = like
    with getattr(beside, "fake_mode", torch.no_grad()):
        set_value(node, torch.empty(size, dtype=dtype, device=beside.device))
    return node


def graph_name(graph: fx.Graph, name: str) -> fx.Node:
    """The node that names a graph which an op calls."""
    node = graph.get_attr(name)
    node.meta["depends"] = Depends.CONST
    return node


def operand(graph: fx.Graph, outer: fx.Node) -> fx.Node:
    """The input of a conditional's arm that stands for a node outside of it."""
    node = graph.placeholder(outer.name)
    node.meta = {k: v for k, v in outer.meta.items() if k != "macs"}
    if kind_of(outer) is None:
        node.meta["kind"] = InputKind.HOISTED if not outer.meta.get("depends") else None
    return node
