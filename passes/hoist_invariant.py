"""hoist-invariant: move what cannot change, or changes with the timestep alone, out of the step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from .base import PassContext, PassResult
from .cost import total_macs
from .effects import alias_sources, storage_roots
from .ir import (
    Depends,
    InputKind,
    Prologue,
    StepGraph,
    depends_of,
    flat_nodes,
    kind_of,
    output_node,
    placeholders,
    set_value,
    value_of,
)
from .modules import live_nodes, module_of, needed
from .symbolic import fresh_like, tensor_bytes

# Work that is cheaper to repeat than to keep a second copy of: views, projections, broadcasts.
CHEAP_METHODS = frozenset(
    "view reshape permute transpose unflatten flatten squeeze unsqueeze expand chunk split unbind "
    "contiguous to float half bfloat16 type_as size dim".split()
)
CHEAP_FUNCTIONS: frozenset[object] = frozenset(
    {operator.getitem, torch.chunk, torch.split, torch.unbind, torch.unsqueeze, torch.reshape}
)


@dataclass(frozen=True)
class HoistInvariant:
    """Split const, condition and step work into prologues whose results enter as inputs.

    The `condition` prologue (text projections, rotary tables, pooled text) reads no timestep, the
    `step` prologue (time embedding, modulation) reads it but no latents. Both are proofs from the
    dependence analysis, so results are bit-identical. The border is drawn at real work: a view or
    a projection of a hoisted value is repeated in the step rather than stored.

    Given::

        %getitem = getitem(%timestep, (:, None)) : f32[2,1] [step]
        %linear = linear(%getitem, @time.weight, @time.bias) : f32[2,8] @time [step]
        %emb = getitem(%linear, (:, None)) : f32[2,1,8] [step]
        %kv = linear(%text, …) : f32[2,7,8] @blocks.0.to_kv [condition]

    Result::

        prologue condition -> %kv  // 896 MAC {
          %kv = linear(%text, …) : f32[2,7,8] @blocks.0.to_kv [condition]
          yield (%kv,)
        }
        prologue step -> %linear  // 16 MAC {
          %getitem = getitem(%timestep, (:, None)) : f32[2,1] [step]
          %linear = linear(%getitem, @time.weight, @time.bias) : f32[2,8] @time [step]
          yield (%linear,)
        }
        %emb = getitem(%linear, (:, None)) : f32[2,1,8] [step]
    """

    name: ClassVar[str] = "hoist-invariant"
    requires: ClassVar[frozenset[str]] = frozenset({"dependence"})
    ensures: ClassVar[frozenset[str]] = frozenset({"hoisted"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Split the graph; a graph with nothing to hoist comes back unchanged."""
        facts = graph.facts | self.ensures
        old = graph.graph
        if not any(kind_of(n) is InputKind.LATENTS for n in placeholders(old)):
            return PassResult(graph.with_(facts=facts), False, {"hoisted values": 0})
        condition = _hoistable(old, Depends.CONDITION)
        step = _hoistable(old, Depends.STEP | Depends.CONDITION) - condition
        module = graph.module
        prologues: list[Prologue] = []
        for name, chosen in (("condition", condition), ("step", step)):
            nodes = {n.name for n in chosen}
            made, module = _split(name, module, nodes)
            if made is not None:
                prologues.append(made)
        if not prologues:
            return PassResult(graph.with_(facts=facts), False, {"hoisted values": 0})
        stats: dict[str, int | float | str] = {f"{p.name} MACs": p.macs for p in prologues}
        stats["hoisted values"] = sum(len(p.outputs) for p in prologues)
        done = graph.with_(module=module, prologues=tuple(prologues), facts=facts)
        return PassResult(done, True, stats)


def is_cheap(node: fx.Node) -> bool:
    """Whether repeating the node costs no more than a view or a cast.

    A result that shares storage with an operand is a view whatever made it: remembering it would
    remember memory that its owner may overwrite.
    """
    if alias_sources(node):
        return True
    if node.op == "call_method":
        return node.target in CHEAP_METHODS
    return node.op == "call_function" and node.target in CHEAP_FUNCTIONS


def _hoistable(graph: fx.Graph, allowed: Depends) -> set[fx.Node]:
    """Calls that change with nothing beyond `allowed`."""
    return {
        n
        for n in graph.nodes
        if n.op.startswith("call") and not depends_of(n) & ~allowed and "autocast" not in n.meta
    }


def _split(
    name: str, module: fx.GraphModule, names: set[str]
) -> tuple[Prologue | None, fx.GraphModule]:
    """Move the named nodes of `module` into a prologue; gives it and the remaining step."""
    order = list(module.graph.nodes)
    chosen = {n for n in order if n.name in names}
    worth = {n for n in chosen if not is_cheap(n)}
    for node in order:  # anything downstream of real work is worth keeping
        if node in chosen and any(a in worth for a in node.all_input_nodes):
            worth.add(node)
    border: dict[fx.Node, None] = {}
    repeated: set[fx.Node] = set()

    def keep(value: fx.Node) -> None:
        """Store `value`, or where it is a cheap view of one stored value, repeat the view."""
        if value not in worth:
            if value in chosen and value not in repeated:
                repeated.add(value)
                for arg in value.all_input_nodes:
                    keep(arg)
            return
        # A tuple cannot be an input of the step: what makes it is repeated like a view.
        storable = isinstance(value_of(value), torch.Tensor)
        if storable and (not is_cheap(value) or _narrows(value)):
            border[value] = None
        else:
            repeated.add(value)
            for arg in value.all_input_nodes:
                if arg in chosen:
                    keep(arg)

    for node in order:
        if node not in chosen:
            for arg in flat_nodes((node.args, node.kwargs)):
                if arg in chosen:
                    keep(arg)
    border = {n: None for n in order if n in border}
    if not border:
        return None, module
    prologue = _extract(module, list(border))
    rest = _without(name, module, border)
    outputs = tuple(n.name for n in border)
    return Prologue(name, prologue, outputs, total_macs(prologue.graph.nodes)), rest


def _narrows(value: fx.Node) -> bool:
    """Whether the value is a cast to a smaller type: better stored so than cast at every step."""
    if value.op != "call_method" or value.target not in ("to", "half", "bfloat16"):
        return False
    return tensor_bytes(value_of(value)) < tensor_bytes(value_of(value.all_input_nodes[0]))


def _extract(module: fx.GraphModule, wanted: list[fx.Node]) -> fx.GraphModule:
    """The part of the graph that computes `wanted`, returned as a tuple."""
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    inside = needed(wanted)
    for node in module.graph.nodes:
        if node in inside:
            env[node] = new.node_copy(node, env.__getitem__)
    new.output(tuple(env[n] for n in wanted))
    return module_of(module, new)


def _without(name: str, module: fx.GraphModule, border: dict[fx.Node, None]) -> fx.GraphModule:
    """The step with the border values as inputs; what only fed them is gone."""
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    copy: Callable[[fx.Node], fx.Node] = env.__getitem__
    live = live_nodes(module.graph, border=border)
    for node in placeholders(module.graph):
        if node in live:
            env[node] = new.node_copy(node, copy)
    for node in border:
        env[node] = new.placeholder(node.name)
        env[node].meta = {k: v for k, v in node.meta.items() if k != "macs"}
        env[node].meta.update(kind=InputKind.HOISTED, prologue=name)
    for node in module.graph.nodes:
        if node in live and node not in env and node.op != "output":
            env[node] = new.node_copy(node, copy)

    def owned(value: fx.Node) -> fx.Node:
        """What the step returns must not be the remembered value: the caller may write to it."""
        if not any(root in border for root in storage_roots(value)):
            return env[value]
        made = new.call_method("clone", (env[value],))
        made.meta = {k: v for k, v in env[value].meta.items() if k not in ("kind", "prologue")}
        made.meta["macs"] = 0
        set_value(made, fresh_like(value_of(value)))
        return made

    new.output(fx.map_arg(output_node(module.graph).args[0], owned))
    return module_of(module, new)
