"""Order a graph so that chosen sets of nodes stand together."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from torch import fx

from .base import PassError
from .effects import is_autocast_mark, is_random
from .ir import Region


def ordered_groups(
    graph: fx.Graph, owner: Mapping[str, Region], first: Sequence[fx.Node] = ()
) -> list[list[fx.Node]]:
    """The graph's calls in a topological order in which each scheduled region is contiguous.

    `owner` maps node names to their scheduled region; every region comes after the nodes of
    `first`. Autocast ranges stay whole as well, and random draws in their order. Among ready groups
    the earliest in graph order goes first, so that an untouched graph keeps its order. Raises
    PassError where two regions need each other.
    """
    groups = _groups(graph, owner)
    waiting = _needs(groups, owner, first)
    readers: list[list[int]] = [[] for _ in groups]
    for i, needs in enumerate(waiting):
        for j in needs:
            readers[j].append(i)
    ready = [i for i, needs in enumerate(waiting) if not needs]
    heapq.heapify(ready)
    result: list[list[fx.Node]] = []
    while ready:
        i = heapq.heappop(ready)
        result.append(groups[i])
        for j in readers[i]:
            waiting[j].discard(i)
            if not waiting[j]:
                heapq.heappush(ready, j)
    if len(result) != len(groups):
        raise PassError(
            "insert-cache: the scheduled regions depend on each other in a circle; "
            "schedule regions that are connected subgraphs"
        )
    return result


def _groups(graph: fx.Graph, owner: Mapping[str, Region]) -> list[list[fx.Node]]:
    """The calls that stay together, in the order of their first ones: a region, a range, or one."""
    found: dict[object, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        key: object = node
        if (region := owner.get(node.name)) is not None:
            key = ("region", region.name)
        elif (span := node.meta.get("autocast")) is not None:
            key = ("autocast", span)
        found.setdefault(key, []).append(node)
    return list(found.values())


def _needs(
    groups: Sequence[Sequence[fx.Node]], owner: Mapping[str, Region], first: Sequence[fx.Node]
) -> list[set[int]]:
    """For each group the ones that have to come before it; `first` come before every region."""
    group_of = {node: i for i, group in enumerate(groups) for node in group}
    found: list[set[int]] = []
    last_draw: int | None = None
    for i, group in enumerate(groups):
        needs = {group_of[a] for n in group for a in n.all_input_nodes if a in group_of}
        # Draws follow one another as traced: each moves the generator on.
        if any(is_random(n) or (n.is_impure() and not is_autocast_mark(n)) for n in group):
            needs |= set() if last_draw is None else {last_draw}
            last_draw = i
        if group[0].name in owner:
            needs |= {group_of[n] for n in first if n in group_of}
        found.append(needs - {i})
    return found
