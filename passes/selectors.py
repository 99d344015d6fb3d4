"""Selectors: how a policy names regions of a model that it has never seen.

`denoiser`, `deep` and a region's own name stand for themselves. `blocks[m:n]` is the run of blocks
m to n-1 of the chain, with Python's meaning of slices; `attention[m:n]`, `cross-attention[m:n]` and
`mlp[m:n]` are the branches of that role in those blocks. `+` joins selectors under one schedule.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import replace

from torch import fx

from .base import PassError
from .ir import Depends, Region, StepGraph, depends_of
from .outline import Outline
from .regions import Order, make_region
from .roles import ROLES

PATTERN = re.compile(r"(blocks|attention|cross-attention|mlp)\[(-?\d*):(-?\d*)\]")


def outline(graph: StepGraph) -> Outline:
    """The outline of an analysed graph."""
    roles = {r.role for r in graph.regions if r.kind == "branch" and r.refusal is None}
    deep = any(r.kind == "deep" and r.refusal is None for r in graph.regions)
    return Outline(len(chain(graph)), tuple(r for r in ROLES if r in roles), deep)


def chain(graph: StepGraph) -> list[Region]:
    """The repeated blocks in the order in which the latents pass them."""
    return [r for r in graph.regions if r.kind == "block" and r.macs and "#" not in r.name]


def resolve(graph: StepGraph, selector: str, head: Set[str] = frozenset()) -> tuple[Region, ...]:
    """The regions that a selector names; a run is formed on demand.

    Nodes in `head` run before a decision and belong to no region: what is left of a region that
    holds some is formed anew, under the selector's name. Raises PassError for an unknown name and
    for a selector that matches nothing.
    """
    found: list[Region] = []
    for part in selector.split("+"):
        found += _one(graph, part.strip())
    if not found:
        blocks = len(chain(graph))
        known = ", ".join(outline(graph).roles) or "none"
        raise PassError(
            f"{selector!r} names no region of this model, which has {blocks} blocks; roles found "
            f"among their branches: {known}"
        )
    return tuple(_without(graph, region, head) for region in found)


def _one(graph: StepGraph, part: str) -> list[Region]:
    matched = PATTERN.fullmatch(part)
    if matched is None:
        try:
            return [graph.region(part)]
        except KeyError as missing:
            raise PassError(f"{missing.args[0]}; the plan is for another model") from None
    kind, start, stop = matched.groups()
    blocks = chain(graph)[slice(int(start) if start else None, int(stop) if stop else None)]
    if kind == "blocks":
        return [_run(graph, part, blocks)] if blocks else []
    inside = {n for block in blocks for n in block.nodes}
    return [r for r in graph.regions if r.role == kind and r.nodes[0] in inside]


def _run(graph: StepGraph, name: str, blocks: list[Region]) -> Region:
    """All latent work from the first block's first node to the last one's last.

    In graph order such an interval is closed: nothing that leaves it can flow back into it.
    """
    order = Order(graph.graph)
    position = {n.name: i for i, n in enumerate(order.nodes)}
    first = min(position[n] for n in blocks[0].nodes)
    last = max(position[n] for n in blocks[-1].nodes)
    nodes = [n for n in order.nodes[first : last + 1] if _latent(n)]
    path = blocks[0].path if len(blocks) == 1 else f"{blocks[0].path} to {blocks[-1].path}"
    return make_region(name, "run", path, nodes, order)


def _latent(node: fx.Node) -> bool:
    return node.op.startswith("call") and bool(depends_of(node) & Depends.LATENT)


def _without(graph: StepGraph, region: Region, head: Set[str]) -> Region:
    if head.isdisjoint(region.nodes):
        return region
    order = Order(graph.graph)
    left = set(region.nodes) - head
    if not left:
        raise PassError(f"nothing is left of region {region.name}: all of it precedes the decision")
    nodes = [n for n in order.nodes if n.name in left]
    made = make_region(region.name, region.kind, region.path, nodes, order)
    return replace(made, stability=region.stability, drift=region.drift, role=region.role)
