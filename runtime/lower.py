"""Lowering: a specialised graph becomes a callable, each distinct block compiled once.

The graph is cut at block borders into pieces; pieces of equal structure share one compiled
function, with their weights as inputs. Cache ops stay between the pieces and call the kernels.
"""

from __future__ import annotations

import hashlib
import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._dynamo.backends.registry import lookup_backend
from torch._guards import TracingContext, tracing

from ..kernels.forecast import forecast
from ..passes.form_regions import block_path
from ..passes.ir import (
    Depends,
    cache_forecast,
    cache_read,
    depends_of,
    output_node,
    placeholders,
    value_of,
)

Compiled = Callable[..., Any]
RUNTIME_OPS: dict[Any, Compiled] = {cache_forecast: forecast, cache_read: cache_read}


@dataclass
class PieceCache:
    """Compiled pieces by structural key, shared by all graphs of a process and inner compiler."""

    pieces: dict[str, Compiled] = field(default_factory=dict[str, Compiled])
    lock: threading.RLock = field(default_factory=threading.RLock)
    hits: int = 0


_caches: dict[str, PieceCache] = {}


def piece_cache(inner: str) -> PieceCache:
    """The process-wide cache of pieces that `inner` compiled."""
    return _caches.setdefault(inner, PieceCache())


@dataclass(frozen=True)
class Instruction:
    """Call `fn` on registers `inputs`; store its results in `outputs`; then free `dead`."""

    fn: Compiled
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dead: tuple[int, ...]


class Lowered:
    """A straight-line program over registers; call it with the graph's inputs in order."""

    def __init__(self, code: list[Instruction], registers: int, result: Any, kinds: int) -> None:
        self.code = code
        self.kinds = kinds  # distinct compiled pieces
        self._registers = registers
        self._result = result

    def __call__(self, *args: Any) -> Any:
        regs: list[Any] = [None] * self._registers
        regs[: len(args)] = args
        for step in self.code:
            results = step.fn(*[regs[i] for i in step.inputs])
            for i, value in zip(step.outputs, results, strict=True):
                regs[i] = value
            for i in step.dead:
                regs[i] = None
        return _pick(self._result, regs)


def _pick(shape: Any, regs: list[Any]) -> Any:
    if isinstance(shape, _Register):
        return regs[shape.index]
    if isinstance(shape, (tuple, list)):
        return type(shape)(_pick(s, regs) for s in shape)
    if isinstance(shape, dict):
        return {k: _pick(v, regs) for k, v in shape.items()}
    return shape


@dataclass(frozen=True)
class _Register:
    index: int


def lower(module: fx.GraphModule, inner: str) -> Callable[..., Any]:
    """Compile a graph with the inner compiler; gives a callable on the graph's inputs in order.

    `inner="eager"` runs the graph's own ops, bit for bit. Any other name is looked up among
    torch.compile's backends and gets one piece per distinct block. Errors of the inner compiler
    pass through.
    """
    if inner == "eager":
        return _eager(module)
    return _lower_pieces(module, inner)


def _eager(module: fx.GraphModule) -> Callable[..., Any]:
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        made = env[node] = graph.node_copy(node, env.__getitem__)
        if node.op == "call_function" and node.target in RUNTIME_OPS:
            made.target = RUNTIME_OPS[node.target]
    return fx.GraphModule(module, graph).forward


def _lower_pieces(module: fx.GraphModule, inner: str) -> Lowered:
    graph = module.graph
    cache = piece_cache(inner)
    register = {n: i for i, n in enumerate(placeholders(graph))}
    code: list[Instruction] = []
    kinds: set[str] = set()
    pieces = partition(graph)
    last_use = _last_uses(pieces, output_node(graph))
    for index, nodes in enumerate(pieces):
        if nodes[0].target in RUNTIME_OPS:
            op = RUNTIME_OPS[nodes[0].target]
            inputs, outputs = list(nodes[0].all_input_nodes), nodes[:1]
            fn: Compiled = lambda *a, op=op: (op(*a),)  # noqa: E731
        else:
            piece, inputs, outputs = extract(module, nodes)
            if not outputs:
                continue
            key = structural_key(piece)
            kinds.add(key)
            with cache.lock:
                if key in cache.pieces:
                    cache.hits += 1
                else:
                    cache.pieces[key] = _compile(piece, inner)
                fn = cache.pieces[key]
        for node in outputs:
            register[node] = len(register)
        dead = [n for n in (*inputs, *outputs) if last_use.get(n, index) <= index]
        code.append(
            Instruction(
                fn,
                tuple(register[n] for n in inputs),
                tuple(register[n] for n in outputs),
                tuple(dict.fromkeys(register[n] for n in dead)),
            )
        )
    result = _registers_of(output_node(graph).args[0], register)
    return Lowered(code, len(register), result, len(kinds))


def _registers_of(value: Any, register: dict[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return _Register(register[value])
    if isinstance(value, (tuple, list)):
        return type(value)(_registers_of(v, register) for v in value)
    if isinstance(value, dict):
        return {k: _registers_of(v, register) for k, v in value.items()}
    return value


def partition(graph: fx.Graph) -> list[list[fx.Node]]:
    """Cut the graph's calls into pieces at block borders and around cache ops, in order.

    The latent path decides: a piece is a run of one block. What does not depend on the latents
    (views of hoisted values) joins the first piece that reads it, wherever it stood before.
    Autocast ranges are never cut, since their pieces take the join of the range.
    """
    calls = [n for n in graph.nodes if n.op not in ("placeholder", "output")]
    piece_of: dict[fx.Node, int] = {}
    current, span = None, None
    count = 0
    for node in calls:
        runtime = node.target in RUNTIME_OPS
        if not runtime and not depends_of(node) & Depends.LATENT and "autocast" not in node.meta:
            continue
        path = f"op:{node.name}" if runtime else block_path(node)
        inside_range = span is not None and node.meta.get("autocast") == span
        if path != current and not inside_range:
            count += 1
            current = path
        span = node.meta.get("autocast")
        piece_of[node] = count - 1
    count = max(count, 1)
    for node in reversed(calls):
        if node not in piece_of:
            readers = [piece_of[u] for u in node.users if u in piece_of]
            piece_of[node] = min(readers, default=count - 1)
    for node in calls:  # a tuple stays inside its piece: only its parts cross a border
        if node.target is operator.getitem and not isinstance(value_of(node.args[0]), Tensor):
            piece_of[node] = piece_of.get(cast(fx.Node, node.args[0]), piece_of[node])
    pieces: list[list[fx.Node]] = [[] for _ in range(count)]
    for node in calls:
        pieces[piece_of[node]].append(node)
    return [_canonical(p) for p in pieces if p]


def _canonical(piece: list[fx.Node]) -> list[fx.Node]:
    """The piece with each invariant node right before its first reader.

    Passes leave invariant nodes in different places; equal blocks must come out in equal order.
    """
    latent = [n for n in piece if depends_of(n) & Depends.LATENT]
    if not latent:
        return piece
    inside, done = set(piece), dict[fx.Node, None]()

    def emit(node: fx.Node) -> None:
        if node not in inside or node in done:
            return
        for arg in node.all_input_nodes:
            emit(arg)
        done[node] = None

    for node in latent:
        emit(node)
    for node in piece:  # what only a later piece reads
        emit(node)
    return list(done)


def _last_uses(pieces: list[list[fx.Node]], output: fx.Node) -> dict[fx.Node, int]:
    """Index of the last piece that reads each value; graph outputs are read for ever."""
    last: dict[fx.Node, int] = {}
    for index, nodes in enumerate(pieces):
        for node in nodes:
            for arg in node.all_input_nodes:
                last[arg] = index
    for node in output.all_input_nodes:
        last[node] = len(pieces) + 1
    return last


def extract(
    module: fx.GraphModule, nodes: Sequence[fx.Node]
) -> tuple[fx.GraphModule, list[fx.Node], list[fx.Node]]:
    """A piece as a module of its own, with the values that it reads and the values that it gives.

    Inputs come in order of first use, outputs in graph order, so that equal blocks agree.
    """
    inside = set(nodes)
    inputs = list(dict.fromkeys(a for n in nodes for a in n.all_input_nodes if a not in inside))
    outputs = [n for n in nodes if any(u not in inside for u in n.users)]
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for i, arg in enumerate(inputs):
        env[arg] = graph.placeholder(f"in_{i}")
        env[arg].meta = {"example_value": value_of(arg)}
    for node in nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(tuple(env[n] for n in outputs))
    piece = fx.GraphModule(module, graph)
    return piece, inputs, outputs


def structural_key(piece: fx.GraphModule) -> str:
    """A hash equal for two pieces exactly if one compiled function can serve both.

    Covers the ops, every constant, the wiring by position (so the order of inputs too), and
    shape, stride, dtype and device of each input.
    """
    number: dict[fx.Node, int] = {}
    lines: list[str] = []
    for node in piece.graph.nodes:
        if node.op == "placeholder":
            lines.append(_input_key(value_of(node)))
        else:
            what = node.target if isinstance(node.target, str) else _qualified(node.target)
            if node.op == "get_attr":
                what = f"{what}@{id(operator.attrgetter(str(node.target))(piece))}"
            args = fx.map_arg((node.args, node.kwargs), lambda n: _Named(number[n]))
            lines.append(f"{node.op} {what} {args!r}")
        number[node] = len(number)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class _Named:
    """A value by its number; prints as such inside an argument list."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __repr__(self) -> str:
        return f"%{self.index}"


def _qualified(target: Any) -> str:
    # The id keeps two same-named functions (lambdas, closures) apart.
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}#{id(target)}"


def _input_key(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"in {type(value).__name__} {value}"
    return f"in {tuple(value.shape)} {value.stride()} {value.dtype} {value.device}"


def _compile(piece: fx.GraphModule, inner: str) -> Compiled:
    examples = [value_of(n) for n in placeholders(piece.graph)]
    mode = next((e.fake_mode for e in examples if hasattr(e, "fake_mode")), None)
    compiler = cast("Callable[..., Compiled]", lookup_backend(inner))
    with torch.no_grad(), tracing(TracingContext(mode)):
        return compiler(piece, examples)

