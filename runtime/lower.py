"""Lowering: a specialised graph becomes a callable, each distinct block compiled once.

The graph is cut at block borders into pieces; pieces of equal structure share one compiled
function, with their weights as inputs. Cache ops stay between the pieces and call the kernels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import fx
from torch._dynamo.backends.registry import lookup_backend
from torch._guards import TracingContext, tracing

from ..passes.ir import output_node, placeholders, value_of
from .branches import GRAPH_OPS, graph_op, is_arm, lowered_arm
from .joined_kernels import joined
from .pieces import RUNTIME_OPS, ambient, extract, narrowed, partition, structural_key

Compiled = Callable[..., Any]


@dataclass
class PieceCache:
    """Compiled pieces by structural key, shared by all graphs of a process and inner compiler."""

    pieces: dict[str, Compiled] = field(default_factory=dict[str, Compiled])
    # What the keys name by id: as long as it lives, nothing else can have that id.
    alive: list[fx.GraphModule] = field(default_factory=list[fx.GraphModule])
    lock: threading.RLock = field(default_factory=threading.RLock)


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

    def __init__(self, code: list[Instruction], registers: int, result: Any) -> None:
        self.code = code
        self._registers = registers
        self._result = result

    def __call__(self, *args: Any) -> Any:
        """Run the program on the graph's inputs, in order; gives what the graph gives."""
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
        elif node.op == "call_function" and node.target in GRAPH_OPS:
            made.target = GRAPH_OPS[node.target]
    arms = {str(n.target): lowered_arm(module, n, lower, "eager") for n in env if is_arm(n)}
    owner = fx.GraphModule(module, graph)
    for name, arm in arms.items():
        delattr(owner, name)
        setattr(owner, name, arm)
    return owner.forward


def _lower_pieces(module: fx.GraphModule, inner: str) -> Lowered:
    graph = module.graph
    register = {n: i for i, n in enumerate(placeholders(graph))}
    code: list[Instruction] = []
    pieces = partition(graph)
    last_use = _last_uses(pieces, output_node(graph))
    graphs = [any(n.target in GRAPH_OPS for n in nodes) for nodes in pieces]
    parts = [
        None if calls or nodes[0].target in RUNTIME_OPS else extract(module, nodes)
        for nodes, calls in zip(pieces, graphs, strict=True)
    ]
    compiled = _compiled([part[0] for part in parts if part is not None and part[2]], inner)
    for index, (nodes, part) in enumerate(zip(pieces, parts, strict=True)):
        fn: Compiled
        if graphs[index]:
            fn, inputs, outputs = graph_op(module, nodes, lower, inner)
        elif part is None:
            fn, inputs, outputs = _runtime_op(nodes[0])
        else:
            piece, inputs, outputs = part
            if not outputs:
                continue
            fn = compiled[piece]
        for node in outputs:
            register[node] = len(register)
        # Later pieces may need a size for their shapes alone.
        values = [n for n in (*inputs, *outputs) if not isinstance(value_of(n), torch.SymInt)]
        dead = [n for n in values if last_use.get(n, index) <= index]
        code.append(
            Instruction(
                fn,
                tuple(register[n] for n in inputs),
                tuple(register[n] for n in outputs),
                tuple(dict.fromkeys(register[n] for n in dead)),
            )
        )
    result = _registers_of(output_node(graph).args[0], register)
    return Lowered(code, len(register), result)


def _runtime_op(node: fx.Node) -> tuple[Compiled, list[fx.Node], list[fx.Node]]:
    """A cache op as a function of the values that it reads."""
    constants = {k: v for k, v in node.kwargs.items() if not isinstance(v, fx.Node)}
    op, count = partial(RUNTIME_OPS[node.target], **constants), len(node.args)
    names = tuple(k for k in node.kwargs if k not in constants)
    inputs = cast("list[fx.Node]", [*node.args, *(node.kwargs[k] for k in names)])
    if not names:
        return lambda *given: (op(*given),), inputs, [node]

    def call(*given: Any) -> tuple[Any]:
        return (op(*given[:count], **dict(zip(names, given[count:], strict=True))),)

    return call, inputs, [node]


def _registers_of(value: Any, register: dict[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return _Register(register[value])
    if isinstance(value, (tuple, list)):
        return type(value)(_registers_of(v, register) for v in value)
    if isinstance(value, dict):
        return {k: _registers_of(v, register) for k, v in value.items()}
    return value


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


def _compiled(pieces: list[fx.GraphModule], inner: str) -> dict[fx.GraphModule, Compiled]:
    """Each piece's function; equal pieces of this and of other graphs share one."""
    cache = piece_cache(inner)
    keys = {piece: f"{structural_key(piece)} {ambient()}" for piece in pieces}
    with cache.lock:
        made: dict[str, Compiled] = {}
        with joined() if inner == "inductor" else nullcontext():
            for piece, key in keys.items():
                if key in cache.pieces or key in made:
                    continue
                fn = made[key] = _compile(piece, inner)
                cache.alive.append(piece)
                for fewer, kept in narrowed(piece):
                    made.setdefault(f"{structural_key(fewer)} {ambient()}", _picking(fn, kept))
        cache.pieces.update(made)  # not before their kernels are built
        return {piece: cache.pieces[key] for piece, key in keys.items()}


def _picking(fn: Compiled, kept: tuple[int, ...]) -> Compiled:
    def picked(*args: Any) -> tuple[Any, ...]:
        results = fn(*args)
        return tuple(results[i] for i in kept)

    return picked


def _compile(piece: fx.GraphModule, inner: str) -> Compiled:
    if sum(n.op.startswith("call") for n in piece.graph.nodes) == 1:
        return fx.GraphModule(piece, piece.graph).forward  # there is nothing to fuse
    examples = [value_of(n) for n in placeholders(piece.graph)]
    mode = next((e.fake_mode for e in examples if hasattr(e, "fake_mode")), None)
    compiler = cast("Callable[..., Compiled]", lookup_backend(inner))
    with torch.no_grad(), tracing(TracingContext(mode)), _no_graphs(inner):
        return compiler(piece, examples)


def _no_graphs(inner: str) -> AbstractContextManager[object]:
    """Without Inductor's own CUDA graphs: their next replay overwrites what they gave.

    That may be in a slot by then, or the caller's. What is captured is captured by the runtime.
    """
    if inner != "inductor":
        return nullcontext()
    from torch._inductor import config

    return config.patch({"triton.cudagraphs": False})
