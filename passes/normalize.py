"""normalize: a private, functional copy of the traced graph with canonical names."""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx

from .attention_kernels import KernelChoices
from .base import PassContext, PassError, PassResult
from .effects import (
    alias_sources,
    inplace_argument,
    is_autocast_mark,
    op_base,
    pure_operator,
    recompute,
    storages,
    written,
)
from .functional_ops import functional_setitem
from .ir import StepGraph, set_value, value_of
from .modules import module_of
from .names import source_name
from .symbolic import fresh_like

# Methods that write their operand whole: `base[...] = value` says the same.
_OVERWRITES = frozenset({"copy_", "fill_", "zero_"})
# In-place methods that change the tensor's shape or history rather than its numbers, or draw.
_NO_TWIN = frozenset(
    "unsqueeze_ squeeze_ t_ transpose_ swapaxes_ swapdims_ resize_ resize_as_ set_ as_strided_ "
    "requires_grad_ rename_ share_memory_ normal_ uniform_ random_ exponential_ cauchy_ geometric_ "
    "log_normal_".split()
)


@dataclass(frozen=True)
class Normalize:
    """Copy Dynamo's graph, remove mutation, give every value a short stable name.

    Dynamo's own module is never touched: its wrapper keeps pointers into it. An in-place
    `setitem`, a method such as `add_` or a function with `inplace=True`, on a value that the step
    itself made, becomes a functional op and later uses read the new value. Writing into an input,
    or into a value of which a view is read again later, has no functional equivalent that this
    pass can prove; it is refused. What shares storage is read off the fake values of the trace.
    Switches of grad mode go: the step runs without gradients. A choice of attention kernel
    (`sdpa_kernel`) becomes an argument of the attention ops in its range.

    Given::

        %out = empty_like(%h, dtype=bf16) : bf16[2,16,8]
        %getitem = getitem(%h, (..., 0::2)) : f32[2,16,4]
        %setitem = setitem(%out, (..., 0::2), %getitem)
        …
        %add_ = .add_(%out, %getitem_2) : bf16[2,16,8]
        return (%add_,)

    Result::

        %out = empty_like(%h, dtype=bf16) : bf16[2,16,8]
        %getitem = getitem(%h, (..., 0::2)) : f32[2,16,4]
        %setitem = functional_setitem(%out, (..., 0::2), %getitem) : bf16[2,16,8]
        …
        %add = .add(%setitem_1, %getitem_2) : f32[2,16,8]
        %to = .to(%add, bf16) : bf16[2,16,8]
        return (%to,)
    """

    name: ClassVar[str] = "normalize"
    requires: ClassVar[frozenset[str]] = frozenset()
    ensures: ClassVar[frozenset[str]] = frozenset({"functional"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Give a functional copy; raises PassError on a mutation that cannot be removed."""
        source = graph.module
        copy, kernels = _Copy(), KernelChoices(source.graph.nodes)
        writes: _Writes | None = None
        mutations = 0
        for node in source.graph.nodes:
            if targets := written(node):
                writes = writes or _Writes(source.graph)
                copy.rewrite(node, writes.check(node, targets))
                mutations += 1
            elif node.op == "output":
                copy.finish(node)
            elif node.target is torch._C._set_grad_enabled:
                mutations += 1
            elif not kernels.marks(node):
                copy.take(node, *kernels.chosen(node))
        _place_autocast_marks(copy.graph)
        module = module_of(source, copy.graph)
        done = graph.with_(module=module, facts=graph.facts | self.ensures)
        return PassResult(
            done, True, {"nodes": len(copy.graph.nodes), "mutations removed": mutations}
        )


class _Copy:
    """The functional graph in the making, and what stands in it for each traced value."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self._env: dict[fx.Node, fx.Node] = {}
        self._latest: dict[fx.Node, fx.Node] = {}  # a written tensor's newest version
        self._first: dict[fx.Node, fx.Node] = {}  # of a write's result: the node it was made under
        self._taken: dict[str, int] = {}

    def take(self, node: fx.Node, target: Any, kwargs: Any) -> None:
        """Copy a node that writes nothing; `target` and `kwargs` may be others than its own."""
        made = self._env[node] = self._emit(node, target, node.args, kwargs)
        if node.op == "placeholder":
            made.meta["source"] = source_name(node)

    def rewrite(self, write: fx.Node, base: fx.Node) -> None:
        """Give a write into `base` its functional form; who reads `base` later reads that."""
        made = self._emit(write, *_pure(write))
        if (dtype := _dtype_to_restore(write, base)) is not None:
            set_value(made, recompute(made))
            cast_back = self.graph.call_method("to", (made, dtype))
            cast_back.meta, made = dict(write.meta), cast_back
        # A value of its own: the fake one shares storage with what was written.
        set_value(made, fresh_like(value_of(base)))
        first = self._first[write] = self._first.get(base, base)
        self._latest[first] = self._env[write] = made

    def finish(self, output: fx.Node) -> None:
        """Copy the graph's output."""
        args = cast("tuple[Any, ...]", fx.map_arg(output.args, self._read))
        self.graph.output(args[0]).meta = dict(output.meta)

    def _read(self, node: fx.Node) -> fx.Node:
        return self._latest.get(self._first.get(node, node), self._env[node])

    def _emit(self, node: fx.Node, target: Any, args: Any, kwargs: Any) -> fx.Node:
        args = cast("tuple[Any, ...]", fx.map_arg(args, self._read))
        kwargs = cast("dict[str, Any]", fx.map_arg(kwargs, self._read))
        name = _unique(_short_name(node).rstrip("_") or "value", self._taken)
        # An overwriting method becomes a function; all other nodes keep their kind.
        op = "call_function" if target is functional_setitem else node.op
        made = self.graph.create_node(op, target, args, kwargs, name)
        made.meta = dict(node.meta)
        return made


class _Writes:
    """What each write of a graph reaches, found once for the graph."""

    def __init__(self, graph: fx.Graph) -> None:
        self._order = {n: i for i, n in enumerate(graph.nodes)}
        self._sets: dict[fx.Node, set[fx.Node]] = {}  # nodes that may share storage
        by_storage: defaultdict[int, list[fx.Node]] = defaultdict(list)
        for node in graph.nodes:
            self._sets[node] = {node}
            for source in alias_sources(node):
                self._join(node, source)
            for storage in storages(value_of(node)):
                by_storage[storage].append(node)
        for nodes in by_storage.values():
            for other in nodes[1:]:
                self._join(nodes[0], other)
        self._identity: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            if targets := written(node):
                self._identity[node] = self._first(targets[0])

    def check(self, write: fx.Node, targets: tuple[fx.Node, ...]) -> fx.Node:
        """The one tensor written; raises PassError if the effect reaches further than its uses."""
        base, text = targets[0], write.format_node()
        if len(targets) > 1 or not isinstance(value_of(base), Tensor):
            raise PassError(
                f"normalize: {text} writes into {len(targets)} values at once; "
                "write its functional form in the model."
            )
        now, first = self._order[write], self._first(base)
        for other in sorted(self._sets[base], key=self._order.__getitem__):
            if other.op in ("placeholder", "get_attr"):
                where = "the input" if base.op == "placeholder" else "a view of the input"
                raise PassError(
                    f"normalize: {text} writes into {where} {source_name(other)}; a step may not "
                    "mutate its inputs. Clone it in the model first."
                )
            if self._order[other] >= now or self._first(other) is first:
                continue
            if any(self._order[u] > now for u in other.users):
                raise PassError(
                    f"normalize: {text} changes memory that {other.name} shares, which is read "
                    "again later; clone one of the two first, or take the view after the write."
                )
        return base

    def _first(self, node: fx.Node) -> fx.Node:
        """The node under which the tensor was made: a write's result is what it wrote."""
        return self._identity.get(node, node)

    def _join(self, a: fx.Node, b: fx.Node) -> None:
        small, large = sorted((self._sets[a], self._sets[b]), key=len)
        if small is not large:
            large |= small
            for node in small:
                self._sets[node] = large


def _place_autocast_marks(graph: fx.Graph) -> None:
    """Give the marks of each autocast range the module that all of the range lies in.

    Dynamo leaves them without one, which would cut the block around them in pieces.
    """
    opened: list[tuple[fx.Node, list[list[Any]]]] = []
    for node in graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).items())
        if not is_autocast_mark(node):
            for _, inside in opened:
                inside.append(stack)
        elif op_base(node) == "_enter_autocast":
            opened.append((node, []))
        elif opened:
            enter, inside = opened.pop()
            levels = zip(*inside, strict=False)
            shared = takewhile(lambda level: all(part == level[0] for part in level), levels)
            stack = dict(level[0] for level in shared)
            for mark in (enter, node):
                mark.meta["nn_module_stack"] = stack


def _pure(node: fx.Node) -> tuple[Any, Any, Any]:
    """Target and arguments of the out-of-place form; raises PassError if there is none."""
    name = op_base(node)
    if node.target is operator.setitem or name == "__setitem__":
        return functional_setitem, node.args, {}
    if node.op == "call_method" and name in _OVERWRITES:
        value = 0 if name == "zero_" else [*node.args[1:], *node.kwargs.values()][0]
        return functional_setitem, (node.args[0], Ellipsis, value), {}
    if (plain := pure_operator(node.target)) is not None:
        return plain, node.args, node.kwargs
    if inplace_argument(node) is True:
        args = tuple(False if a is True and i else a for i, a in enumerate(node.args))
        kwargs = {k: False if k == "inplace" else v for k, v in node.kwargs.items()}
        if "inplace" in node.kwargs:
            return node.target, node.args, kwargs
        if sum(a is True for a in node.args) == 1:  # else which of them it is cannot be told
            return node.target, args, kwargs
    elif (twin := _twin(node, name)) is not None:
        return twin, node.args, node.kwargs
    raise PassError(
        f"normalize: {node.format_node()} changes its operand in place and has no functional "
        f"form that ditcache knows; write it without {name} in the model."
    )


def _twin(node: fx.Node, name: str) -> Any:
    """What computes the same without writing: `add` for `add_`; None if there is nothing."""
    if name in _NO_TWIN or "out" in node.kwargs:
        return None
    if isinstance(node.target, torch._ops.OpOverload):
        packet = getattr(torch.ops.aten, name[:-1], None)
        return getattr(packet, node.target._overloadname, None)
    if node.op == "call_method":
        return name[:-1] if callable(getattr(Tensor, name[:-1], None)) else None
    return getattr(torch, name[:-1], None) if node.target is getattr(torch, name, None) else None


def _dtype_to_restore(node: fx.Node, base: fx.Node) -> torch.dtype | None:
    """The written tensor's dtype where the out-of-place form would promote it to another."""
    kept = value_of(base)
    if not isinstance(kept, Tensor) or node.target is operator.setitem:
        return None
    others = [v for a in node.all_input_nodes if isinstance(v := value_of(a), Tensor)]
    return kept.dtype if any(v.dtype != kept.dtype for v in others) else None


def _short_name(node: fx.Node) -> str:
    if node.op == "placeholder":
        return source_name(node).replace(".", "_")
    return node.name


def _unique(name: str, taken: dict[str, int]) -> str:
    count = taken.get(name, 0)
    taken[name] = count + 1
    return name if count == 0 else _unique(f"{name}_{count}", taken)
