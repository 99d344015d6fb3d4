"""What a branch is for, and where a residual stream comes from: both read off the dataflow."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx

from .effects import op_base
from .ir import Depends, InputKind, Region, StepGraph, depends_of, kind_of, value_of
from .symbolic import shape_of

ATTENTION, CROSS_ATTENTION, MLP = "attention", "cross-attention", "mlp"
ROLES = (ATTENTION, CROSS_ATTENTION, MLP)
ADDS = (operator.add, torch.add, torch.ops.aten.add.Tensor)
CASTS = frozenset({"to", "float", "half", "bfloat16", "type_as", "_to_copy"})
# Ops that hand the stream on: casts, and guards against overflow.
SAME = CASTS | {"clip", "clamp", "contiguous", "clone", "nan_to_num"}
PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "einsum", "__matmul__", "linear"})

Window = tuple[int, int, int]  # dim, start, length: the part of a value that is looked for


def role_of(branch: Iterable[fx.Node]) -> str:
    """attention, cross-attention or mlp.

    A branch that holds attention (a fused op, or a softmax over a product) is attention, and
    cross-attention where no key depends on the latents; any other is an MLP. A block that computes
    attention and MLP side by side and projects them together has one branch, which is attention.
    """
    nodes = list(branch)
    keys = [key for n in nodes if (key := _key(n)) is not None]
    if not keys:
        return MLP
    latent = any(depends_of(key) & Depends.LATENT for key in keys)
    return ATTENTION if latent else CROSS_ATTENTION


def _key(node: fx.Node) -> fx.Node | None:
    """The key of an attention, None if the node is none."""
    name = op_base(node)
    if "attention" in name or "attn" in name:
        key: Any = node.kwargs.get("key", node.args[1] if len(node.args) > 1 else None)
        return key if isinstance(key, fx.Node) else None
    if name != "softmax":
        return None
    todo, seen = list(node.all_input_nodes), set[fx.Node]()
    while todo:  # the scores: the closest product upstream
        score = todo.pop(0)
        if score in seen:
            continue
        seen.add(score)
        if (op_base(score) in PRODUCTS or score.target is operator.matmul) and len(score.args) > 1:
            # Scores of [.., queries, keys]: the latents are in the queries whatever the order.
            operands = [a for a in score.args if isinstance(a, fx.Node)]
            return min(operands, key=lambda a: depends_of(a).rank, default=None)
        if len(seen) < 16:
            todo.extend(a for a in score.all_input_nodes if depends_of(a) & Depends.LATENT)
    return None


def partners(
    graph: StepGraph, region: Region, nodes: Mapping[str, fx.Node] | None = None
) -> dict[str, str]:
    """The live-in that each live-out's residual stream comes from, for those that have one.

    Found by following residual adds, casts, slices and concatenations back from the live-out, so
    that two streams of equal shape (text and image of equal length) are never mixed up. The whole
    denoiser has no residual stream: its output is paired with the latents if shapes agree.
    `nodes` are the graph's by name, where the caller has them.
    """
    nodes = nodes or graph.nodes_by_name()
    inside = {nodes[n] for n in region.nodes}
    found: dict[str, str] = {}
    for name in region.live_outs:
        made = nodes[name]
        source = _origin(made, None, inside, set())
        if source is None and region.kind == "denoiser":
            latents = (nodes[n] for n in region.live_ins if kind_of(nodes[n]) is InputKind.LATENTS)
            source = next(latents, None)
        if source is not None and _shape(source) == _shape(made):
            found[name] = source.name
    return found


def _origin(
    node: fx.Node,
    window: Window | None,
    inside: set[fx.Node],
    seen: set[tuple[fx.Node, Window | None]],
) -> fx.Node | None:
    """The value outside the region that `window` of `node` is a residual sum on top of."""
    if (node, window) in seen or not isinstance(value_of(node), (Tensor, tuple, list)):
        return None
    seen.add((node, window))
    if window is not None and isinstance(value_of(node), Tensor):
        whole = _shape(node)[window[0]]
        window = None if (window[1], window[2]) == (0, whole) else window
    if node not in inside:
        outer = kind_of(node) is not InputKind.PARAMETER and isinstance(value_of(node), Tensor)
        return node if window is None and outer else None
    if node.target in ADDS or (node.op == "call_method" and node.target == "add"):
        operands = [
            a for a in node.args[:2] if isinstance(a, fx.Node) and _shape(a) == _shape(node)
        ]
        sources = [_origin(a, window, inside, seen) for a in operands]
        sources = [s for s in sources if s is not None]
        # A positional table may be added to the stream as well; the stream follows the latents.
        return next(
            (s for s in sources if depends_of(s) & Depends.LATENT), next(iter(sources), None)
        )
    if op_base(node) in SAME and node.all_input_nodes:
        return _origin(node.all_input_nodes[0], window, inside, seen)
    if node.target is operator.getitem:
        return _from_part(node, window, inside, seen)
    if op_base(node) in ("cat", "concat") and window is not None:
        return _from_cat(node, window, inside, seen)
    return None


def _from_part(
    node: fx.Node,
    window: Window | None,
    inside: set[fx.Node],
    seen: set[tuple[fx.Node, Window | None]],
) -> fx.Node | None:
    base, index = cast(fx.Node, node.args[0]), node.args[1]
    part: Window | None
    if isinstance(value_of(base), Tensor):
        part = _slice(_shape(base), index)
    else:  # a piece of a split along one dimension
        pieces = cast("tuple[Any, ...]", value_of(base))
        source = base.all_input_nodes[0]
        if not isinstance(index, int) or not isinstance(value_of(source), Tensor):
            return None
        part = _piece(_shape(source), [shape_of(p) for p in pieces], index % len(pieces))
        base = source
    if part is None:
        return None
    if window is not None:
        if window[0] != part[0]:
            return None
        part = (part[0], part[1] + window[1], window[2])
    return _origin(base, part, inside, seen)


def _slice(shape: tuple[int, ...], index: Any) -> Window | None:
    """The window that `value[index]` takes, None if it takes no plain range of one dimension."""
    parts = index if isinstance(index, tuple) else (index,)
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        fill = len(shape) - (len(parts) - 1)
        parts = (*parts[:at], *(slice(None),) * fill, *parts[at + 1 :])
    found: Window | None = None
    for dim, part in enumerate(parts):
        if not isinstance(part, slice) or part.step not in (None, 1):
            return None
        if part == slice(None):
            continue
        bounds = (_number(part.start), _number(part.stop))
        if found is not None or any(isinstance(b, fx.Node) for b in bounds):
            return None
        start, stop, _ = slice(*cast("tuple[int | None, int | None]", bounds)).indices(shape[dim])
        found = (dim, start, stop - start)
    return found if found is not None else (0, 0, shape[0])


def _number(bound: Any) -> Any:
    """A slice's bound as a plain number where the trace knows it."""
    if isinstance(bound, fx.Node):
        known = value_of(bound)
        if isinstance(known, int):
            return known
        if isinstance(known, torch.SymInt):
            return known.node.hint
    return bound


def _piece(shape: tuple[int, ...], pieces: list[tuple[int, ...]], index: int) -> Window | None:
    dims = [d for d in range(len(shape)) if any(p[d] != shape[d] for p in pieces)]
    if len(dims) != 1 or any(len(p) != len(shape) for p in pieces):
        return None
    dim = dims[0]
    return dim, sum(p[dim] for p in pieces[:index]), pieces[index][dim]


def _from_cat(
    node: fx.Node,
    window: Window,
    inside: set[fx.Node],
    seen: set[tuple[fx.Node, Window | None]],
) -> fx.Node | None:
    given: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    joined = node.kwargs.get("tensors", node.args[0] if node.args else ())
    operands = [a for a in cast("tuple[Any, ...]", joined) if isinstance(a, fx.Node)]
    dim = given % len(_shape(node)) if isinstance(given, int) else -1
    if dim != window[0]:
        return None
    start = 0
    for operand in operands:
        size = _shape(operand)[dim]
        if start <= window[1] and window[1] + window[2] <= start + size:
            return _origin(operand, (dim, window[1] - start, window[2]), inside, seen)
        start += size
    return None


def _shape(node: fx.Node) -> tuple[int, ...]:
    return shape_of(value_of(node))
