"""The verifier's rules on how regions, deltas and decisions fit together."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, cast

from torch import fx

from .base import PassContext
from .functional_ops import relayout
from .ir import InputKind, StepGraph, kind_of, output_node
from .ops import cache_forecast, cache_write
from .printer import node_text
from .verifier_rules import Violation, all_arms


def v12(graph: StepGraph, ctx: PassContext) -> Iterator[Violation]:
    """V12: no node belongs to two scheduled regions; a region inside another would never run."""
    owner: dict[str, str] = {}
    for name in graph.scheduled:
        region = graph.region(name)
        for node in region.nodes:
            if node in owner:
                got = f"%{node} is in {owner[node]} and in {name}"
                yield Violation("scheduled regions that share no work", got)
                return
            owner[node] = name


def v13(graph: StepGraph, ctx: PassContext) -> Iterator[Violation]:
    """V13: a region cached as delta adds the forecast to the live-in that the write subtracts."""
    kinds = {s.name: s.what for s in graph.slots if not s.reference}
    for cond, (hit, miss) in all_arms(graph):
        taken: dict[str, str | None] = {}
        for node in miss.graph.nodes:
            if node.target is cache_write and kinds.get(_slot(node.args[0])) == "delta":
                taken[_slot(node.args[0])] = _base(node.args[1])
        for value in cast("tuple[fx.Node, ...]", output_node(hit.graph).args[0]):
            made = cast(fx.Node, value.args[0]) if value.target is relayout else value
            slot = _slot(made.args[0]) if made.target is cache_forecast else ""
            if slot not in taken:
                continue
            added = cast(fx.Node, made.args[2]).name if len(made.args) > 2 else None
            if added is None or added != taken[slot]:
                got = f"${slot} is written less %{taken[slot]} and forecast on top of %{added}"
                lines = (node_text(made), node_text(cond))
                yield Violation("a delta against one live-in", got, lines)


def v14(graph: StepGraph, ctx: PassContext) -> Iterator[Violation]:
    """V14: what a tail reads of the head is carried over, and nothing is computed twice."""
    head = next((v for v in graph.variants if v.stage == "head"), None)
    tails = [v for v in graph.variants if v.stage == "tail"]
    if head is None:
        if tails:
            yield Violation("a head before the tails", f"{len(tails)} tails without a head")
        return
    given = cast("tuple[Any, ...]", output_node(head.module.graph).args[0])[1]
    if len(given) != len(head.carried):
        yield Violation(f"{len(head.carried)} carried values", f"the head gives {len(given)}")
    work = {node_text(n) for n in head.module.graph.nodes if n.op.startswith("call")}
    for tail in tails:
        for node in tail.module.graph.nodes:
            if kind_of(node) is InputKind.CARRIED and node.name not in head.carried:
                yield Violation("values that the head carries over", f"a tail reads %{node.name}")
            elif node.op.startswith("call") and node_text(node) in work:
                got = f"a tail computes %{node.name} again"
                yield Violation("each value computed once in a step", got, (node_text(node),))


def _slot(ring: Any) -> str:
    return str(cast(fx.Node, ring).meta["slot"])


def _base(value: Any) -> str | None:
    """The name of the live-in that a delta is taken from, through the cast that it may need."""
    node = cast(fx.Node, value)
    if node.target is not operator.sub:
        return None
    base = cast(fx.Node, node.args[1])
    while base.op == "call_method" and base.target == "to":
        base = cast(fx.Node, base.args[0])
    return base.name
