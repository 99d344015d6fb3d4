"""A region's border: what flows in and out of a set of nodes, and whether it can be cached."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator

from torch import Tensor, fx

from .cost import total_macs
from .effects import is_autocast_mark, is_random, is_sync, written
from .ir import InputKind, Region, kind_of, value_of
from .symbolic import tensor_bytes


class Order:
    """A graph's nodes in order, their places and autocast ranges: found once for many regions."""

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = list(graph.nodes)
        self.place = {node: i for i, node in enumerate(self.nodes)}
        self.ranges: defaultdict[int, set[fx.Node]] = defaultdict(set)
        for node in self.nodes:
            if "autocast" in node.meta:
                self.ranges[node.meta["autocast"]].add(node)

    def sorted(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """The nodes in graph order."""
        return sorted(nodes, key=self.place.__getitem__)

    def marks_inside(self, nodes: set[fx.Node]) -> Iterator[fx.Node]:
        """The marks of the autocast ranges that lie in `nodes`: no dataflow leads to them."""
        for members in self.ranges.values():
            marks = {n for n in members if is_autocast_mark(n)}
            if members - marks <= nodes:
                yield from marks

    def comes_back(self, inside: set[fx.Node], region: list[fx.Node]) -> fx.Node | None:
        """A node outside that lies on a path from the region to itself; None if it is convex."""
        after = set[fx.Node]()
        for node in self.nodes[self.place[region[0]] : self.place[region[-1]] + 1]:
            if node in inside:
                found = next((a for a in node.all_input_nodes if a in after), None)
                if found is not None:
                    return found
            elif any(a in inside or a in after for a in node.all_input_nodes):
                after.add(node)
        return None


def make_region(name: str, kind: str, path: str, nodes: Iterable[fx.Node], order: Order) -> Region:
    """Build a region over `nodes` (at least one), closed under tuple projections."""
    inside = set(nodes)
    for node in order.sorted(inside):  # a chunk's parts must not be left outside
        _add_parts(node, inside)
    inside.update(order.marks_inside(inside))
    region = order.sorted(inside)
    ins: dict[str, None] = {}
    outs: dict[str, None] = {}
    weights: dict[fx.Node, None] = {}
    live_bytes, refusal = 0, None
    for node in region:
        for arg in node.all_input_nodes:
            if kind_of(arg) is InputKind.PARAMETER:
                weights[arg] = None
            elif arg not in inside:
                ins[arg.name] = None
        if any(u not in inside for u in node.users):
            outs[node.name] = None
            live_bytes += tensor_bytes(value_of(node))
            refusal = refusal or _refusal(node)
        if is_random(node):
            refusal = refusal or f"it draws random numbers ({node.name})"
        elif is_sync(node):
            refusal = refusal or f"it waits for the host ({node.name})"
        elif written(node):
            refusal = refusal or f"it writes in place ({node.name})"
    touched = {n.meta["autocast"] for n in region if "autocast" in n.meta}
    if not all(order.ranges[index] <= inside for index in touched):
        refusal = refusal or "its border cuts through an autocast range"
    if (back := order.comes_back(inside, region)) is not None:
        refusal = refusal or f"its result flows back into it through {back.name}"
    if not outs:
        refusal = refusal or "nothing outside reads its result"
    return Region(
        name=name,
        kind=kind,
        path=path,
        nodes=tuple(n.name for n in region),
        live_ins=tuple(ins),
        live_outs=tuple(outs),
        macs=total_macs(region),
        weight_bytes=sum(tensor_bytes(value_of(w)) for w in weights),
        live_bytes=live_bytes,
        refusal=refusal,
    )


def _add_parts(node: fx.Node, inside: set[fx.Node]) -> None:
    """Add the projections of a tuple, and those of its parts."""
    if isinstance(value_of(node), (tuple, list)):
        for user in node.users:
            if user.target is operator.getitem and user.args[0] is node:
                inside.add(user)
                _add_parts(user, inside)


def _refusal(live_out: fx.Node) -> str | None:
    value = value_of(live_out)
    if not isinstance(value, Tensor):
        return f"its live-out {live_out.name} is a {type(value).__name__}, not a tensor"
    if not value.is_floating_point():
        return f"its live-out {live_out.name} is {value.dtype}, which cannot be forecast"
    return None
