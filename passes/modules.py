"""Graphs as modules, and what of a graph is alive: what passes copy and what they leave out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import cast

from torch import Tensor, fx
from torch.fx._lazy_graph_module import _LazyGraphModule

from .ir import value_of
from .ops import cache_cond


def module_of(owner: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    """The graph as a module with the metadata of `owner` and those of its attributes that it names.

    Python code is written for it when it is first called or printed: passes make many modules that
    never are.
    """
    made = _LazyGraphModule(owner, graph)
    made.meta = dict(owner.meta)
    return made


def arms_of(module: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.GraphModule, fx.GraphModule]]:
    """Each conditional of a module with its hit and its miss arm."""
    for node in module.graph.nodes:
        if node.target is cache_cond:
            hit, miss = (module.get_submodule(str(a.target)) for a in node.args[1:3])
            yield node, cast(fx.GraphModule, hit), cast(fx.GraphModule, miss)


def devices_of(module: fx.GraphModule) -> set[str]:
    """The devices of all tensors in a graph and in the arms of its conditionals."""
    modules = [module, *(arm for _, *arms in arms_of(module) for arm in arms)]
    values = (value_of(n) for m in modules for n in m.graph.nodes)
    return {str(value.device) for value in values if isinstance(value, Tensor)}


def live_nodes(
    graph: fx.Graph,
    reads: Callable[[fx.Node], Collection[fx.Node]] = lambda n: n.all_input_nodes,
    *,
    border: Collection[fx.Node] = (),
) -> set[fx.Node]:
    """What the outputs and the effects of a graph need, and these themselves.

    `reads` says what a node needs; `border` nodes are needed without what they need. Inputs that
    nothing reads are dead.
    """
    live: set[fx.Node] = set()
    todo = [n for n in graph.nodes if n.op != "placeholder" and n not in border and n.is_impure()]
    while todo:
        node = todo.pop()
        if node not in live:
            live.add(node)
            if node not in border:
                todo.extend(reads(node))
    return live


def needed(values: Iterable[fx.Node]) -> set[fx.Node]:
    """All that these values are computed from, inputs too, and they themselves."""
    todo, found = list(values), set[fx.Node]()
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(node.all_input_nodes)
    return found


def drop_dead(graph: fx.Graph) -> None:
    """Remove what neither outputs nor effects need, unread inputs too."""
    for node in reversed(list(graph.nodes)):
        if not node.users and (node.op == "placeholder" or not node.is_impure()):
            graph.erase_node(node)
