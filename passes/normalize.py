"""normalize: a private, functional copy of the traced graph with canonical names."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import fx

from .base import PassContext, PassError, PassResult
from .ir import StepGraph, functional_setitem, set_value, source_name, value_of

# Methods whose result shares storage with their first argument.
VIEW_METHODS = frozenset(
    "view reshape permute transpose unflatten flatten squeeze unsqueeze expand chunk split unbind "
    "t movedim swapaxes narrow select expand_as view_as __getitem__".split()
)
VIEW_FUNCTIONS = frozenset(
    f
    for f in (
        operator.getitem,
        torch.chunk,
        torch.split,
        torch.unbind,
        torch.permute,
        torch.transpose,
        torch.reshape,
        torch.flatten,
        torch.unflatten,
        torch.squeeze,
        torch.unsqueeze,
        torch.narrow,
        torch.select,
        torch.movedim,
    )
)


@dataclass(frozen=True)
class Normalize:
    """Copy Dynamo's graph, remove mutation, give every value a short stable name.

    Dynamo's own module is never touched: its wrapper keeps pointers into it. An in-place
    `setitem`, or a method such as `add_`, on a value that the step itself made becomes a
    functional op and later uses read the new value. Mutating an input, or a view of a value that
    is read again later, has no functional equivalent that this pass can prove; it is refused.

    Given::

        %out = empty_like(%h)
        setitem(%out, (Ellipsis, slice(0, None, 2)), %a)
        return %out

    Result::

        %out = empty_like(%h)
        %out_1 = functional_setitem(%out, (Ellipsis, slice(0, None, 2)), %a)
        return %out_1
    """

    name: ClassVar[str] = "normalize"
    requires: ClassVar[frozenset[str]] = frozenset()
    ensures: ClassVar[frozenset[str]] = frozenset({"functional"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Give a functional copy; raises PassError on a mutation that cannot be removed."""
        source = graph.module
        new = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        renamed: dict[fx.Node, fx.Node] = {}  # a mutated value's latest version
        mutations = 0
        taken: dict[str, int] = {}
        order = {n: i for i, n in enumerate(source.graph.nodes)}

        def latest(n: fx.Node) -> fx.Node:
            return renamed.get(n, env[n])

        def emit(node: fx.Node, target: Any, op: str) -> fx.Node:
            args = cast("tuple[Any, ...]", fx.map_arg(node.args, latest))
            kwargs = cast("dict[str, Any]", fx.map_arg(node.kwargs, latest))
            made = new.create_node(op, target, args, kwargs, _unique(_short_name(node), taken))
            made.meta = dict(node.meta)
            return made

        for node in source.graph.nodes:
            if node.op == "call_function" and node.target is operator.setitem:
                base = cast(fx.Node, node.args[0])
                _check_own(base, node, order)
                made = emit(node, functional_setitem, "call_function")
                set_value(made, value_of(base))
                renamed[base] = env[node] = made
                mutations += 1
            elif (pure := _pure_twin(node)) is not None:
                base = cast(fx.Node, node.args[0])
                _check_own(base, node, order)
                made = emit(node, pure, node.op)
                renamed[base] = env[node] = made
                mutations += 1
            elif node.op == "output":
                args = cast("tuple[Any, ...]", fx.map_arg(node.args, latest))
                new.output(args[0]).meta = dict(node.meta)
            else:
                env[node] = emit(node, node.target, node.op)
                if node.op == "placeholder":
                    env[node].meta["source"] = source_name(node)
        module = fx.GraphModule(source, new)
        module.meta = dict(source.meta)
        done = graph.with_(module=module, facts=graph.facts | self.ensures)
        return PassResult(done, True, {"nodes": len(new.nodes), "mutations removed": mutations})


def _short_name(node: fx.Node) -> str:
    if node.op == "placeholder":
        return source_name(node).replace(".", "_")
    return node.name


def _unique(name: str, taken: dict[str, int]) -> str:
    count = taken.get(name, 0)
    taken[name] = count + 1
    return name if count == 0 else _unique(f"{name}_{count}", taken)


def _pure_twin(node: fx.Node) -> str | Callable[..., Any] | None:
    """The out-of-place form of an in-place op, None if the op does not mutate."""
    if node.op == "call_method":
        name = str(node.target)
        if name.endswith("_") and not name.endswith("__") and hasattr(torch.Tensor, name[:-1]):
            return name[:-1]
        return None
    if node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator":
        name = cast(Any, node.target).__name__  # iadd, imul, ...
        twin = getattr(operator, name[1:], None) if name.startswith("i") else None
        if twin is not None and name not in ("index", "indexOf", "inv", "invert", "is_", "is_not"):
            return cast("Callable[..., Any]", twin)
    return None


def _check_own(base: fx.Node, write: fx.Node, order: dict[fx.Node, int]) -> None:
    """Refuse a write whose effect reaches further than later uses of `base` itself."""
    if base.op == "placeholder":
        raise PassError(
            f"normalize: {write.format_node()} writes into the input {base.name}; "
            "a cached step may not mutate its inputs. Clone it in the model first."
        )
    seen = base
    while _is_view(seen):
        parent = cast(fx.Node, seen.args[0])
        if any(order[u] > order[write] for u in parent.users if u is not seen):
            raise PassError(
                f"normalize: {write.format_node()} writes through a view of {parent.name}, which "
                "is read again later; write to the base tensor or clone the view first."
            )
        seen = parent
    if seen.op == "placeholder":
        raise PassError(
            f"normalize: {write.format_node()} writes into a view of the input {seen.name}; "
            "a cached step may not mutate its inputs. Clone it in the model first."
        )
    aliases = [u for u in base.users if _is_view(u) and u.args and u.args[0] is base]
    if any(order[v] > order[write] for a in aliases if order[a] < order[write] for v in a.users):
        raise PassError(
            f"normalize: {write.format_node()} changes {base.name}, of which an earlier view is "
            "read later; take the view after the write."
        )


def _is_view(node: fx.Node) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_method":
        return str(node.target) in VIEW_METHODS
    return node.op == "call_function" and node.target in VIEW_FUNCTIONS
