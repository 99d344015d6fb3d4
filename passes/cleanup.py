"""cleanup: dead code and common subexpressions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import fx

from .base import PassContext, PassResult
from .cost import total_macs
from .effects import is_random, storage_roots
from .ir import StepGraph, Variant, output_node, placeholders
from .modules import live_nodes, module_of
from .ops import cache_cond


@dataclass(frozen=True)
class Cleanup:
    """Remove unused nodes and merge equal pure ones, in the step, its variants and prologues.

    Two calls merge when target and arguments are the same and neither draws random numbers,
    mutates or sits in an autocast range; the same kernel on the same inputs gives the same bits.

    Given::

        %a = linear(%x, @q.weight, @q.bias) : f32[2,16,8] @q
        %b = linear(%x, @q.weight, @q.bias) : f32[2,16,8] @q
        %relu = relu(%a) : f32[2,16,8]
        %add = add(%a, %b) : f32[2,16,8]

    Result::

        %a = linear(%x, @q.weight, @q.bias) : f32[2,16,8] @q
        %add = add(%a, %a) : f32[2,16,8]
    """

    name: ClassVar[str] = "cleanup"
    requires: ClassVar[frozenset[str]] = frozenset()
    ensures: ClassVar[frozenset[str]] = frozenset({"clean"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Clean copies of every module that the step graph holds."""
        removed = 0

        def clean(module: fx.GraphModule) -> fx.GraphModule:
            nonlocal removed
            done = _cleaned(module)
            removed += len(module.graph.nodes) - len(done.graph.nodes)
            return done

        def whole(variant: Variant) -> fx.GraphModule:
            done = clean(variant.module)
            arms = {str(a.target) for n in done.graph.nodes if n.target is cache_cond
                    for a in n.args[1:3]}  # fmt: skip
            if arms:
                done = module_of(done, done.graph)
            for arm in arms:
                setattr(done, arm, clean(cast(fx.GraphModule, done.get_submodule(arm))))
            return done

        variants = tuple(replace(v, module=whole(v)) for v in graph.variants)
        variants = tuple(replace(v, macs=total_macs(v.module.graph.nodes)) for v in variants)
        prologues = tuple(replace(p, module=clean(p.module)) for p in graph.prologues)
        facts = graph.facts | self.ensures
        done = graph.with_(
            module=clean(graph.module), variants=variants, prologues=prologues, facts=facts
        )
        return PassResult(done, removed > 0, {"nodes removed": removed})


def _cleaned(module: fx.GraphModule) -> fx.GraphModule:
    """A copy without what is equal or dead; the module itself where nothing is."""
    graph = module.graph
    twins = _twins(graph)

    def one(node: fx.Node) -> fx.Node:
        return twins.get(node, node)

    live = live_nodes(graph, lambda n: [one(a) for a in n.all_input_nodes])
    live.update(placeholders(graph))
    if len(live) == len(graph.nodes):
        return module
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in live:
            env[node] = new.node_copy(node, lambda n: env[one(n)])
    return module_of(module, new)


def _twins(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For each call that repeats an earlier one: the first of its kind."""
    seen: dict[tuple[Any, ...], fx.Node] = {}
    twins: dict[fx.Node, fx.Node] = {}
    # Two results that the caller got in separate memory stay in separate memory.
    returned = set[fx.Node]()
    for node in output_node(graph).all_input_nodes:
        returned |= storage_roots(node)
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method") or node.is_impure():
            continue
        if is_random(node) or "autocast" in node.meta or _fresh_storage(node):
            continue
        try:
            key = (node.op, node.target, _frozen(node.args, twins), _frozen(node.kwargs, twins))
            twin = seen.setdefault(key, node)
        except TypeError:  # an unhashable constant: leave the node alone
            continue
        if twin is not node and not (node in returned and twin in returned):
            twins[node] = twin
    return twins


def _fresh_storage(node: fx.Node) -> bool:
    """Factories whose contents are undefined, or that exist to be distinct."""
    return getattr(node.target, "__name__", node.target) in ("empty", "empty_like", "new_empty")


def _frozen(value: Any, twins: Mapping[fx.Node, fx.Node]) -> Any:
    """A hashable key of an FX argument; 1, 1.0 and True must stay apart."""
    if isinstance(value, fx.Node):
        return twins.get(value, value)
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *(_frozen(v, twins) for v in value))
    if isinstance(value, dict):
        return tuple((k, _frozen(v, twins)) for k, v in value.items())
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return ("slice", *(_frozen(v, twins) for v in parts))
    if isinstance(value, float):
        return ("float", value.hex())
    if isinstance(value, torch.Tensor):
        raise TypeError("tensors are compared by nobody")
    return (type(value).__name__, value)
