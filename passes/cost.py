"""Multiply-accumulates of each node, by the conventions of torch.utils.flop_counter."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .effects import bodies, op_base
from .functional_ops import relayout
from .ir import flat_nodes, value_of
from .ops import CACHE_OPS
from .symbolic import hint, shape_of, stride_of

_SDPA = torch.nn.functional.scaled_dot_product_attention


def annotate_macs(graph: fx.Graph) -> int:
    """Set `meta["macs"]` on every node and give the sum.

    A MAC is half a FLOP of torch.utils.flop_counter: matrix products, convolutions and attention
    count, elementwise work does not. Each op is run once on its fake inputs; nodes that carry the
    figure already are not run again.
    """
    alike: dict[Hashable, int] = {}
    return sum(node_macs(n, alike) for n in graph.nodes)


def node_macs(node: fx.Node, alike: dict[Hashable, int] | None = None) -> int:
    """MACs of one node, from its metadata or by running it on fake tensors.

    `alike` keeps the figures of ops on equal inputs: blocks repeat, and one is run for all.
    """
    known = node.meta.get("macs")
    if known is not None:
        return cast(int, known)
    count = _count(node, {} if alike is None else alike)
    node.meta["macs"] = count
    return count


def total_macs(nodes: Iterable[fx.Node]) -> int:
    """Sum of MACs over nodes."""
    return sum(node_macs(n) for n in nodes)


def _count(node: fx.Node, alike: dict[Hashable, int]) -> int:
    if not node.op.startswith("call") or node.target in CACHE_OPS or node.target is relayout:
        return 0
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return sum(total_macs(body.graph.nodes) for body in bodies(node))
    if _elementwise(node) or not isinstance(value_of(node), (Tensor, tuple, list)):
        return 0
    values = {n: value_of(n) for n in flat_nodes((node.args, node.kwargs))}
    tensors = [v for v in values.values() if isinstance(v, Tensor)]
    if not tensors or not any(v.is_floating_point() for v in tensors):
        return 0
    args = cast("tuple[Any, ...]", fx.map_arg(node.args, values.__getitem__))
    kwargs = cast("dict[str, Any]", fx.map_arg(node.kwargs, values.__getitem__))
    if node.target is _SDPA or op_base(node) == "scaled_dot_product_attention":
        # CPU and CUDA dispatch to fused kernels that the counter may not know: use its formula.
        q, k, v = (shape_of(a) for a in _sdpa_tensors(args, kwargs))
        return _sdpa_flops(q, k, v) // 2
    # On meta tensors of the traced sizes: symbolic ones would add guards to the trace.
    args, kwargs = tree_map(_plain, (args, kwargs))
    key = node.op, node.target, repr((args, kwargs))
    if key not in alike:
        alike[key] = _run(node, args, kwargs)
    return alike[key]


def _run(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            if node.op == "call_method":
                getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                cast(Any, node.target)(*args, **kwargs)
    except Exception:  # a custom op without a meta kernel may raise anything; it counts zero
        return 0
    return int(counter.get_total_flops()) // 2


def _sdpa_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    names = ("query", "key", "value")
    return [args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names)]


def _sdpa_flops(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> int:
    def four(s: tuple[int, ...]) -> tuple[int, ...]:
        lead = 1
        for d in s[:-3]:
            lead *= d
        return (lead, *((1,) * (3 - len(s))), *s[-3:])

    q, k, v = four(q), four(k), four(v)
    if q[1] != k[1]:  # grouped queries: every key head serves several query heads
        k, v = (k[0], q[1], *k[2:]), (v[0], q[1], *v[2:])
    return int(sdpa_flop_count(q, k, v))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        shape, stride = shape_of(value), stride_of(value)
        return torch.empty_strided(shape, stride, dtype=value.dtype, device="meta")
    if isinstance(value, torch.device):
        return torch.device("meta")
    return hint(value) if isinstance(value, (torch.SymInt, torch.SymFloat)) else value


_CHEAP = frozenset(
    "add sub mul truediv div neg getitem to float half type_as silu gelu relu sigmoid tanh exp cos "
    "sin rms_norm layer_norm group_norm softmax cat stack chunk split unbind view reshape permute "
    "transpose unsqueeze squeeze flatten unflatten expand contiguous clone pow rsqrt sqrt".split()
)


def _elementwise(node: fx.Node) -> bool:
    """Ops known to count zero; running each of thousands of them on fake tensors is slow."""
    return op_base(node) in _CHEAP
