"""dependence: what each value can change with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from .base import PassContext, PassResult
from .effects import is_random
from .ir import Depends, InputKind, StepGraph, depends_of, kind_of

SOURCES = {
    InputKind.PARAMETER: Depends.CONST,
    InputKind.CONDITION: Depends.CONDITION,
    InputKind.TIMESTEP: Depends.STEP,
    InputKind.LATENTS: Depends.LATENT,
    # A symbolic size is fixed while shapes are, and a changed shape starts a new generation.
    InputKind.SCALAR: Depends.CONDITION,
}


@dataclass(frozen=True)
class Dependence:
    """Forward dataflow over the lattice const < condition, step < latent.

    A node's class is the join of its inputs' classes. Random ops are latent: they differ at
    every step. An autocast range is one unit, since its nodes only mean what they mean between
    the two marks; all of it takes the join over the range.

    Given::

        %linear = linear(%getitem, @time.weight, @time.bias) : f32[2,8] @time
        %kv = linear(%text, @blocks.0.to_kv.weight, @blocks.0.to_kv.bias) : f32[2,7,8] …
        %x = add(%hidden_states, %linear_2) : f32[2,16,8] @blocks.0

    Result (no class behind an op means: volatile)::

        %linear = linear(%getitem, @time.weight, @time.bias) : f32[2,8] @time [step]
        %kv = linear(%text, @blocks.0.to_kv.weight, @blocks.0.to_kv.bias) : … [condition]
        %x = add(%hidden_states, %linear_2) : f32[2,16,8] @blocks.0
    """

    name: ClassVar[str] = "dependence"
    requires: ClassVar[frozenset[str]] = frozenset({"classified"})
    ensures: ClassVar[frozenset[str]] = frozenset({"dependence"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Set `meta["depends"]` on every node (and `meta["autocast"]` inside autocast ranges)."""
        ranges = autocast_ranges(graph.graph)
        for index, group in enumerate(ranges):
            for node in group:
                node.meta["autocast"] = index
        for node in graph.graph.nodes:
            kind = kind_of(node)
            node.meta["depends"] = SOURCES.get(kind, Depends.LATENT) if kind else Depends.CONST
        changed = True
        while changed:  # twice, and once more for each raised range that feeds a later one
            changed = False
            for node in graph.graph.nodes:
                if kind_of(node) is None:
                    changed |= _raise([node], _join(node))
            for group in ranges:
                joined = Depends.CONST
                for node in group:
                    joined |= depends_of(node)
                changed |= _raise(group, joined)
        calls = [n for n in graph.graph.nodes if n.op.startswith("call")]
        stats: dict[str, Any] = dict(Counter(depends_of(n).stability for n in calls))
        return PassResult(graph.with_(facts=graph.facts | self.ensures), True, stats)


def _raise(nodes: Iterable[fx.Node], to: Depends) -> bool:
    """Join `to` into the class of each node; whether any changed."""
    changed = False
    for node in nodes:
        raised = depends_of(node) | to
        changed |= raised != depends_of(node)
        node.meta["depends"] = raised
    return changed


def _join(node: fx.Node) -> Depends:
    joined = Depends.CONST
    for arg in node.all_input_nodes:
        joined |= depends_of(arg)
    return joined | Depends.LATENT if is_random(node) else joined


def autocast_ranges(graph: fx.Graph) -> list[list[fx.Node]]:
    """The outermost `_enter_autocast` … `_exit_autocast` ranges, marks included."""
    ranges: list[list[fx.Node]] = []
    depth = 0
    for node in graph.nodes:
        if node.target is torch.amp.autocast_mode._enter_autocast:
            depth += 1
            if depth == 1:
                ranges.append([])
        if depth and node.op != "placeholder":
            ranges[-1].append(node)
        if node.target is torch.amp.autocast_mode._exit_autocast:
            depth -= 1
    return ranges
