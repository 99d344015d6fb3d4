"""Pieces: a graph cut at block borders, and the key by which equal pieces share one compilation."""

from __future__ import annotations

import hashlib
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_symbols

from ..kernels.clock import Dial, Grid, clock
from ..kernels.forecast import forecast
from ..kernels.formats import Packed
from ..kernels.probe import Verdict, decide, probe
from ..kernels.write import write
from ..passes.effects import alias_sources
from ..passes.form_regions import block_path
from ..passes.ir import Depends, depends_of, output_node, value_of
from ..passes.modules import module_of, needed
from ..passes.ops import (
    cache_below,
    cache_clock,
    cache_forecast,
    cache_holds,
    cache_probe,
    cache_write,
)
from .branches import GRAPH_OPS, is_arm, rehearsal
from .offload import Offloaded


def forecast_slot(
    slot: Tensor | Packed | Offloaded,
    weights: Tensor,
    base: Tensor | None = None,
    at: Tensor | None = None,
) -> Tensor:
    """`cache.forecast` at run time: of a slot that may have to be fetched first."""
    ring = slot.fetch() if isinstance(slot, Offloaded) else slot
    return forecast(ring, weights, row=None if at is None else at[:1], add=base)


def tick(timestep: Tensor, times: Tensor, within: Tensor, dial: Tensor, flag: Tensor) -> Tensor:
    """`cache.clock` at run time."""
    clock(timestep, Grid(times, within), Dial(dial), flag)
    return dial


def left(at: Tensor) -> Tensor:
    """`cache.holds` at run time, as a conditional node takes it: i32[1], 0 where the plan holds."""
    return Dial(at).left


def below(
    figures: Tensor, limit: Tensor, flag: Tensor, running: Tensor, *, accumulate: bool = False
) -> Tensor:
    """`cache.below` at run time, as a conditional node takes it: the flag, 0 where it is below."""
    decide(figures, limit, Verdict(flag, running), accumulate=accumulate)
    return flag


def refresh(slot: Tensor | Packed, value: Tensor) -> Tensor:
    """`cache.write` where a device decides: into a slot of one entry, in place."""
    if rehearsal.get():
        return value
    if isinstance(slot, Packed):
        write(value, slot, 0)
    else:
        slot[0].copy_(value)
    return value


RUNTIME_OPS: dict[Any, Any] = {
    cache_forecast: forecast_slot,
    cache_probe: probe,
    cache_below: below,
    cache_write: refresh,
    cache_clock: tick,
    cache_holds: left,
}


def partition(graph: fx.Graph) -> list[list[fx.Node]]:
    """Cut the graph's calls into pieces at block borders and around cache ops, in order.

    The latent path decides: a piece is a run of one block. What does not depend on the latents
    (views of hoisted values) joins the first piece that reads it, wherever it stood before; what a
    cache op reads becomes a piece before it. Autocast ranges are never cut, since their pieces take
    the join of the range.
    """
    calls = [n for n in graph.nodes if n.op not in ("placeholder", "output")]
    piece_of: dict[fx.Node, int] = {}  # even; odd ones are what the next piece, a cache op, reads
    alone: set[int] = set()
    current, span = None, None
    count = 0
    for node in calls:
        runtime = node.target in RUNTIME_OPS or node.target in GRAPH_OPS
        if not runtime and not depends_of(node) & Depends.LATENT and "autocast" not in node.meta:
            continue
        path = f"op:{node.name}" if runtime else block_path(node)
        inside_range = span is not None and node.meta.get("autocast") == span
        if path != current and not inside_range:
            count += 2
            current = path
        span = node.meta.get("autocast")
        piece_of[node] = count
        if runtime:
            alone.add(count)
    for node in reversed(calls):
        if node not in piece_of:
            first = min((piece_of[u] for u in node.users if u in piece_of), default=count)
            piece_of[node] = first - (first in alone and not is_arm(node))
    for node in calls:  # a tuple stays inside its piece: only its parts cross a border
        if node.target is operator.getitem and not isinstance(value_of(node.args[0]), Tensor):
            piece_of[node] = piece_of.get(cast(fx.Node, node.args[0]), piece_of[node])
    pieces: dict[int, list[fx.Node]] = defaultdict(list)
    for node in calls:
        pieces[piece_of[node]].append(node)
    return [_canonical(pieces[i]) for i in sorted(pieces)]


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


def extract(
    module: fx.GraphModule, nodes: Sequence[fx.Node]
) -> tuple[fx.GraphModule, list[fx.Node], list[fx.Node]]:
    """A piece as a module of its own, with the values that it reads and the values that it gives.

    Inputs come in order of first use, outputs in graph order, so that equal blocks agree. Symbolic
    sizes are inputs too, wherever a shape holds them: of n*n tokens alone no compiler can tell n.
    """
    inside = set(nodes)
    inputs = list(dict.fromkeys(a for n in nodes for a in n.all_input_nodes if a not in inside))
    inputs = list(dict.fromkeys([*_sizes(module.graph, [*inputs, *nodes]), *inputs]))
    outputs = [n for n in nodes if any(u not in inside for u in n.users)]
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for i, arg in enumerate(inputs):
        env[arg] = graph.placeholder(f"in_{i}")
        env[arg].meta = {"example_value": value_of(arg)}
    for node in nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(tuple(env[n] for n in outputs))
    piece = module_of(module, graph)
    piece.meta = {}  # the step's, not the piece's
    return piece, inputs, outputs


def narrowed(piece: fx.GraphModule) -> Iterator[tuple[fx.GraphModule, tuple[int, ...]]]:
    """The piece without one of its outputs, if that is but a view of what it computes anyway.

    Gives each such piece with the positions of the outputs it keeps: the whole piece's function
    serves it too. So the last of many blocks, of which the text's half is not read any more, needs
    no compilation of its own.
    """
    outputs = cast("tuple[fx.Node, ...]", output_node(piece.graph).args[0])
    for dropped in range(len(outputs) if len(outputs) > 1 else 0):
        kept = tuple(i for i in range(len(outputs)) if i != dropped)
        live = needed([outputs[i] for i in kept])
        dead = [n for n in piece.graph.nodes if n not in live and n.op != "output"]
        if any(n.op == "placeholder" or not alias_sources(n) for n in dead):
            continue
        graph = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        for node in piece.graph.nodes:
            if node in live:
                env[node] = graph.node_copy(node, env.__getitem__)
        graph.output(tuple(env[outputs[i]] for i in kept))
        yield module_of(piece, graph), kept


def _sizes(graph: fx.Graph, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The graph's inputs that are symbols in the shapes of these nodes."""
    symbols = {
        next(iter(value.node.expr.free_symbols), None): n
        for n in graph.nodes
        if n.op == "placeholder" and isinstance(value := value_of(n), torch.SymInt)
    }
    if not symbols:
        return []
    values = [v for n in nodes if isinstance(v := value_of(n), (Tensor, torch.SymInt))]
    found = set[Any]().union(*(free_symbols(v) for v in values))
    return [n for symbol, n in symbols.items() if symbol in found]


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
            named = cast("Callable[[fx.Node], Any]", lambda n: _Named(number[n]))
            args = fx.map_arg((node.args, node.kwargs), named)
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
    module, name = getattr(target, "__module__", ""), getattr(target, "__qualname__", target)
    return f"{module}.{name}#{id(target)}"


def _input_key(value: Any) -> str:
    if not isinstance(value, Tensor):
        shape_env = getattr(getattr(value, "node", None), "shape_env", None)
        return f"in {type(value).__name__} {value} {id(shape_env)}"
    # Where there is one entry, its stride means nothing: a slice of one batch is like any other.
    sizes = zip(value.shape, value.stride(), strict=True)
    strides = [0 if not isinstance(n, torch.SymInt) and n == 1 else s for n, s in sizes]
    text = f"in {tuple(value.shape)} {strides} {value.dtype} {value.device}"
    symbolic = any(isinstance(n, torch.SymInt) for n in (*value.shape, *value.stride()))
    if symbolic:  # s0 of one trace is not s0 of another, nor are their guards the same
        text += f" {id(getattr(value, 'fake_mode', None))}"
    return text


def ambient() -> str:
    """What gives ops another meaning without being written in the graph."""
    devices = ("cpu", "cuda")
    autocast = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
    precision = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    return f"{autocast} {precision} {torch.are_deterministic_algorithms_enabled()}"
