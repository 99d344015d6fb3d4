"""What an op does besides giving a result: write, alias, draw random numbers, wait for the host."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, fx

from .ir import flat_nodes, value_of

# Methods whose result may share storage with their first argument.
VIEW_METHODS = frozenset(
    "view reshape permute transpose unflatten flatten squeeze unsqueeze expand chunk split unbind "
    "t movedim swapaxes narrow select expand_as view_as __getitem__ contiguous to float half "
    "double bfloat16 type type_as detach unfold diagonal tensor_split moveaxis swapdims ravel "
    "as_strided".split()
)
# Of these, some copy where they must; the fake values of a Dynamo trace say which it was.
_MAYBE_VIEWS = frozenset(
    "reshape flatten contiguous to float half double bfloat16 type type_as ravel getitem".split()
)
VIEW_FUNCTIONS = frozenset(
    f
    for f in (
        operator.getitem,
        getattr,
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
        torch.ravel,
        torch.broadcast_to,
        torch.tensor_split,
    )
)
_DRAWS = (
    "rand randn randint randperm bernoulli multinomial normal uniform exponential poisson random "
    "cauchy geometric log_normal gumbel_softmax rand_like randn_like randint_like"
).split()
RANDOM = frozenset([*_DRAWS, *(f"{name}_" for name in _DRAWS)])
# The host needs the result's size, or the result itself; the latter is free of a CPU tensor.
SYNCS = frozenset({"nonzero", "masked_select", "unique"})
READS = frozenset({"item", "tolist", "cpu", "numpy", "_local_scalar_dense"})
AUTOCAST = frozenset({"_enter_autocast", "_exit_autocast"})
_IN_PLACE_OPERATORS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.imatmul: operator.matmul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    operator.ilshift: operator.lshift,
    operator.irshift: operator.rshift,
}


def op_base(node: fx.Node) -> str:
    """The op's bare name: `add_` for a method, a torch function or an ATen overload."""
    if node.op == "call_method":
        return str(node.target)
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[-1]
    return str(getattr(node.target, "__name__", ""))


def is_autocast_mark(node: fx.Node) -> bool:
    """Whether the node opens or closes an autocast range."""
    return node.op == "call_function" and op_base(node) in AUTOCAST


def is_random(node: fx.Node) -> bool:
    """Whether the op draws random numbers. Dropout in eval mode is the identity, and does not."""
    if not node.op.startswith("call"):
        return False
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return any(is_random(n) for body in bodies(node) for n in body.graph.nodes)
    name = op_base(node)
    if "dropout" in name or name == "rrelu":
        at = 4 if name == "rrelu" else 2
        training = node.args[at] if len(node.args) > at else True
        for key in ("training", "train"):
            training = node.kwargs.get(key, training)
        return training is not False and not (len(node.args) > 1 and node.args[1] == 0.0)
    if name == "scaled_dot_product_attention":
        rate: Any = node.kwargs.get("dropout_p", node.args[4] if len(node.args) > 4 else 0.0)
        if isinstance(rate, fx.Node):  # dynamic=True makes a number of the model symbolic
            known = value_of(rate)
            rate = known.node.hint if isinstance(known, torch.SymFloat) else known
        return bool(rate != 0.0)
    if name == "multi_head_attention_forward":
        return node.kwargs.get("training", True) is not False
    if isinstance(node.target, torch._ops.OpOverload):
        return torch.Tag.nondeterministic_seeded in node.target.tags
    return name in RANDOM


def is_sync(node: fx.Node) -> bool:
    """Whether the host waits for the device in this op."""
    if not node.op.startswith("call"):
        return False
    if op_base(node) not in READS:
        return op_base(node) in SYNCS
    values = [value_of(n) for n in node.all_input_nodes]
    return any(isinstance(v, Tensor) and v.device.type != "cpu" for v in values)


def written(node: fx.Node) -> tuple[fx.Node, ...]:
    """The operands whose storage the op writes."""
    if not node.op.startswith("call"):
        return ()
    if isinstance(node.target, torch._ops.OpOverload):
        found: list[fx.Node] = []
        for i, spec in enumerate(node.target._schema.arguments):
            if spec.alias_info is not None and spec.alias_info.is_write:
                given = node.args[i] if i < len(node.args) else node.kwargs.get(spec.name)
                found.extend(flat_nodes(given))
        return tuple(found)
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        writing = any(_writes_operand(body) for body in bodies(node))
        return tuple(n for n in node.all_input_nodes if n.op != "get_attr") if writing else ()
    out = tuple(flat_nodes(node.kwargs.get("out")))
    first = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(first, fx.Node):
        return out
    name = op_base(node)
    if node.op == "call_method":
        in_place = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    elif getattr(node.target, "__module__", "") == "_operator":
        in_place = node.target is operator.setitem or (
            node.target in _IN_PLACE_OPERATORS and isinstance(value_of(first), Tensor)
        )
    else:
        plain = name.endswith("_") and not name.startswith("_")
        in_place = plain or inplace_argument(node) is True
    return (first, *out) if in_place else out


def inplace_argument(node: fx.Node) -> Any:
    """The value of a function's `inplace` argument, None if it has none."""
    if node.op != "call_function":
        return None
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"]
    at = _inplace_position(node.target) if len(node.args) > 1 else None
    return node.args[at] if at is not None and at < len(node.args) else None


@functools.cache
def _inplace_position(target: Any) -> int | None:
    if not str(getattr(target, "__module__", "")).startswith("torch.nn.functional"):
        return None
    try:
        names = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def pure_operator(target: Any) -> Callable[..., Any] | None:
    """`operator.add` for `operator.iadd`, None for anything but an in-place operator."""
    try:
        return _IN_PLACE_OPERATORS.get(target)
    except TypeError:
        return None


def alias_sources(node: fx.Node) -> tuple[fx.Node, ...]:
    """The operands that the node's result may share storage with.

    From the op (views by name, alias annotations of an ATen schema) and from the fake values,
    whose storages are shared where the real ones would be.
    """
    if not node.op.startswith("call"):
        return ()
    sources: dict[fx.Node, None] = dict.fromkeys(written(node))
    own = storages(value_of(node))
    for arg in node.all_input_nodes:
        if own & storages(value_of(arg)):
            sources[arg] = None
    if isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema
        if any(r.alias_info is not None for r in schema.returns):
            for i, spec in enumerate(schema.arguments):
                if spec.alias_info is not None and i < len(node.args):
                    sources.update(dict.fromkeys(flat_nodes(node.args[i])))
    names = VIEW_METHODS if node.op == "call_method" else VIEW_FUNCTIONS
    # Dropout in eval mode gives its very input, which its fake value does not show.
    known = bool(own) and "example_value" in node.meta and op_base(node) in _MAYBE_VIEWS
    if (node.target in names and not known) or "dropout" in op_base(node):
        sources.update(dict.fromkeys(flat_nodes(node.args[:1])))
    return tuple(sources)


def storage_roots(node: fx.Node) -> set[fx.Node]:
    """The nodes that made the storage in which the node's value may lie."""
    roots, todo, seen = set[fx.Node](), [node], set[fx.Node]()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        sources = alias_sources(current)
        todo.extend(sources)
        if not sources:
            roots.add(current)
    return roots


def storages(value: Any) -> frozenset[int]:
    """Identities of the storages behind a (fake) tensor or a tuple of them."""
    if isinstance(value, Tensor):
        try:
            return frozenset({value.untyped_storage()._cdata})
        except (NotImplementedError, RuntimeError):  # sparse and other layouts have none
            return frozenset()
    if isinstance(value, (tuple, list)):
        return frozenset().union(*(storages(v) for v in value))
    return frozenset()


def recompute(node: fx.Node) -> Any:
    """The node's value by running its op on the fake values of its inputs; None if they lack."""
    values = {n: value_of(n) for n in node.all_input_nodes}
    mode = next((v.fake_mode for v in values.values() if hasattr(v, "fake_mode")), None)
    if mode is None or any(v is None for v in values.values()):
        return None
    args = cast("tuple[Any, ...]", fx.map_arg(node.args, values.__getitem__))
    kwargs = cast("dict[str, Any]", fx.map_arg(node.kwargs, values.__getitem__))
    # A trace with symbolic sizes learns nothing from being looked at again.
    quiet = mode.shape_env.suppress_guards() if mode.shape_env is not None else nullcontext()
    with torch.no_grad(), mode, quiet:
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return cast(Any, node.target)(*args, **kwargs)


def bodies(node: fx.Node) -> list[fx.GraphModule]:
    """The graphs that a higher-order op calls."""
    owner = node.graph.owning_module
    found: list[fx.GraphModule] = []
    for arg in node.all_input_nodes:
        if arg.op == "get_attr" and owner is not None:
            body = operator.attrgetter(str(arg.target))(owner)
            if isinstance(body, fx.GraphModule):
                found.append(body)
    return found


def _writes_operand(body: fx.GraphModule) -> bool:
    inputs = {n for n in body.graph.nodes if n.op == "placeholder"}
    return any(storage_roots(t) & inputs for n in body.graph.nodes for t in written(n))
