"""Branches that a device decides: a conditional node under capture, else one on the host."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, fx

from ..passes.ops import cache_cond, cache_prologue
from . import if_node
from .capture import warming
from .memo import storages

Run = Callable[..., Any]
Lower = Callable[[fx.GraphModule, str], Run]

rehearsal: ContextVar[bool] = ContextVar("ditcache_rehearsal", default=False)
"""Whether what runs is for its kernels alone, and writes into nothing that lasts."""


def run_cond(flag: Tensor, hit: Run, miss: Run, operands: Sequence[Any]) -> Any:
    """`cache.cond` at run time: `hit`, and where `flag`, i32[1], is set `miss` in its place.

    There is no other arm and nothing to merge: what the first one gives is overwritten.
    """
    outputs = unshared(hit(*operands), storages(operands))
    branch(flag, lambda: miss(*operands), lambda values: _overwrite(outputs, values))
    return outputs


def run_prologue(prologue: Run, operands: Sequence[Any]) -> Any:
    """`cache.prologue` at run time."""
    return prologue(*operands)


GRAPH_OPS: Mapping[Any, Run] = {cache_cond: run_cond, cache_prologue: run_prologue}
"""Ops that call graphs, which are attributes of the module that they are in."""


def graph_op(
    module: fx.GraphModule, nodes: Sequence[fx.Node], lower: Lower, inner: str
) -> tuple[Run, list[fx.Node], list[fx.Node]]:
    """One of `GRAPH_OPS`, which is among `nodes` with the projections of its result, lowered.

    Gives a function from the values of some nodes to those of others, and both.
    """
    node = next(n for n in nodes if n.target in GRAPH_OPS)
    run = GRAPH_OPS[node.target]
    graphs = {n: lowered_arm(module, n, lower, inner) for n in node.all_input_nodes if is_arm(n)}
    inputs = [n for n in node.all_input_nodes if n not in graphs]
    outputs = [n for n in nodes if n.target is operator.getitem and n.args[0] is node]
    places = [cast(int, n.args[1]) for n in outputs]

    def call(*given: Any) -> tuple[Any, ...]:
        env: dict[fx.Node, Any] = {**graphs, **dict(zip(inputs, given, strict=True))}
        result = run(*cast("tuple[Any, ...]", fx.map_arg(node.args, env.__getitem__)))
        return tuple(result[i] for i in places)

    return call, inputs, outputs


def is_arm(node: fx.Node) -> bool:
    """Whether a node names a graph for one of `GRAPH_OPS`."""
    return node.op == "get_attr" and any(user.target in GRAPH_OPS for user in node.users)


def lowered_arm(module: fx.GraphModule, name: fx.Node, lower: Lower, inner: str) -> Run:
    """The graph that a node names; a prologue is not compiled, as outside of a step."""
    prologue = all(user.target is cache_prologue for user in name.users)
    graph = cast(fx.GraphModule, module.get_submodule(str(name.target)))
    return lower(graph, "eager" if prologue else inner)


def branch(flag: Tensor, made: Callable[[], Any], take: Callable[[Any], None]) -> None:
    """Where `flag`, i32[1], is set: run `made` and `take` what it gives.

    Under capture a conditional node; otherwise the host reads the flag. Before a capture what is
    not to run is rehearsed, so that its kernels are loaded and tuned.
    """
    if flag.is_cuda and torch.cuda.is_current_stream_capturing():
        with if_node.if_node(flag):
            take(made())
        return
    if flag.is_cuda and if_node.missing() is None:
        if_node.prepare(flag.device)
    if flag.item():
        take(made())
    elif warming.get():
        token = rehearsal.set(True)
        try:
            made()
        finally:
            rehearsal.reset(token)


def unshared(value: Any, kept: set[int]) -> Any:
    """A result without storage that others keep: whoever gets it may write into it."""
    if isinstance(value, Tensor):
        return value.clone() if storages([value]) & kept else value
    if isinstance(value, (tuple, list)):
        return type(value)(unshared(v, kept) for v in value)
    return value


def _overwrite(outputs: Any, values: Any) -> None:
    if isinstance(outputs, Tensor):
        outputs.copy_(values)
    elif isinstance(outputs, (tuple, list)):
        for mine, value in zip(outputs, values, strict=True):
            _overwrite(mine, value)
