"""A step that a static plan skips, with a conditional that a device decides around it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from .effects import is_random
from .ir import (
    Depends,
    InputKind,
    Prologue,
    StepGraph,
    Variant,
    flat_nodes,
    kind_of,
    output_node,
    placeholders,
    set_value,
    value_of,
)
from .made_nodes import graph_name, operand, state_input
from .modules import devices_of, module_of
from .ops import cache_clock, cache_cond, cache_forecast, cache_holds, cache_prologue
from .symbolic import shape_of

Parts = dict[str, fx.Node]  # inputs by name


def guarded(graph: StepGraph, steps: int) -> Variant | None:
    """The variant that forecasts everything, and computes where the plan of `steps` steps was left.

    None where no step is skipped as a whole, where no tensor tells the time, where computing draws
    random numbers, which a conditional node cannot, and where it takes two devices.
    """
    count = len(graph.scheduled)
    whole = {v.modes: v for v in graph.variants if v.stage == "whole"}
    skip, full = whole.get((True,) * count), whole.get((False,) * count)
    timestep = _timestep(graph)
    if skip is None or full is None or skip.writes or timestep is None:
        return None
    late = _late(graph, skip, full)
    modules = [full.module, *(p.module for p in late)]
    if any(is_random(n) for m in modules for n in m.graph.nodes):
        return None
    if len(set[str]().union(*(devices_of(m) for m in (skip.module, *modules)))) > 1:
        return None
    root = module_of(graph.module, fx.Graph())
    new = root.graph
    inputs = _inputs(new, [skip.module, full.module, *(p.module for p in late)], late, steps)
    if timestep.name not in inputs:
        inputs[timestep.name] = _input(new, timestep)
    at = _clock(new, inputs[timestep.name], steps)
    hit = _arm(root, skip, [*inputs.values(), at], [], at)
    miss = _arm(root, full, [*inputs.values(), at], late, at)
    holds = new.call_function(cache_holds, (at,))
    holds.meta.update(depends=Depends.LATENT, runs="device")
    root.add_submodule("hit_step", hit)
    root.add_submodule("miss_step", miss)
    passed = _read((*inputs.values(), at), (hit, miss))
    arms = graph_name(new, "hit_step"), graph_name(new, "miss_step")
    cond = new.call_function(cache_cond, (holds, *arms, passed))
    given = [value_of(n) for n in flat_nodes(_results(full))]
    cond.meta.update(depends=Depends.LATENT, region="denoiser", macs=skip.macs)
    set_value(cond, tuple(given))
    parts = _projections(new, cond, list(flat_nodes(_results(full))))
    new.output((fx.map_arg(_results(full), lambda _: next(parts)), ()))
    return Variant(skip.modes, root, (), skip.macs, "decided")


def _timestep(graph: StepGraph) -> fx.Node | None:
    """The input that tells the time, wherever it is read; of several the smallest tensor."""
    graphs = [graph.graph, *(p.module.graph for p in graph.prologues)]
    inputs = [n for g in graphs for n in placeholders(g)]
    times = [n for n in inputs if kind_of(n) is InputKind.TIMESTEP]
    tensors = [n for n in times if isinstance(value_of(n), Tensor)]
    return min(tensors, key=lambda n: len(shape_of(value_of(n))), default=None)


def _late(graph: StepGraph, skip: Variant, full: Variant) -> list[Prologue]:
    """The prologues of the step that computing alone needs: they run where it does."""
    reads = [{n.name for n in placeholders(v.module.graph)} for v in (skip, full)]
    return [
        p
        for p in graph.prologues
        if p.name == "step" and reads[1] & {*p.outputs} and not reads[0] & {*p.outputs}
    ]


def _inputs(
    new: fx.Graph, modules: Sequence[fx.GraphModule], late: Sequence[Prologue], steps: int
) -> Parts:
    """An input for each that any of the modules reads, but for what is computed inside."""
    inside = {name for prologue in late for name in prologue.outputs}
    found: Parts = {}
    for module in modules:
        for node in placeholders(module.graph):
            if node.name in inside or node.name in found:
                continue
            made = found[node.name] = _input(new, node)
            if kind_of(node) is InputKind.WEIGHTS:
                row = cast(Tensor, value_of(node))
                with getattr(row, "fake_mode", torch.no_grad()):
                    table = torch.empty(steps, *row.shape, dtype=row.dtype, device=row.device)
                set_value(made, table)
    return found


def _input(new: fx.Graph, like: fx.Node) -> fx.Node:
    made = new.placeholder(like.name)
    made.meta = {k: v for k, v in like.meta.items() if k != "macs"}
    return made


def _clock(new: fx.Graph, timestep: fx.Node, steps: int) -> fx.Node:
    """The clock's inputs and its tick: where it then stands."""
    value = cast(Tensor, value_of(timestep))
    given = [
        state_input(new, "guard", part, kind, (size, dtype), value)
        for part, kind, size, dtype in (
            ("times", InputKind.GRID, steps, torch.float32),
            ("within", InputKind.GRID, steps, torch.float32),
            ("dial", InputKind.STATE, 4, torch.int32),
            ("flag", InputKind.STATE, 1, torch.int32),
        )
    ]
    at = new.call_function(cache_clock, (timestep, *given))
    at.meta["depends"] = Depends.LATENT
    set_value(at, value_of(given[2]))
    return at


def _arm(
    root: fx.GraphModule,
    variant: Variant,
    outer: Sequence[fx.Node],
    late: Sequence[Prologue],
    at: fx.Node,
) -> fx.GraphModule:
    """A variant as an arm: it reads what is passed, and yields its outputs as a flat tuple."""
    module = module_of(root, fx.Graph())
    graph = module.graph
    inputs = {node.name: operand(graph, node) for node in outer}
    for prologue in late:
        module.add_submodule(f"prologue_{prologue.name}", prologue.module)
        reads = tuple(inputs[n.name] for n in placeholders(prologue.module.graph))
        name = graph_name(graph, f"prologue_{prologue.name}")
        made = graph.call_function(cache_prologue, (name, reads))
        made.meta.update(depends=Depends.LATENT, macs=prologue.macs)
        outputs = cast("tuple[fx.Node, ...]", output_node(prologue.module.graph).args[0])
        set_value(made, tuple(value_of(n) for n in outputs))
        inputs |= dict(zip(prologue.outputs, _projections(graph, made, outputs), strict=True))
    local: dict[fx.Node, fx.Node] = {}
    for node in variant.module.graph.nodes:
        if node.op == "placeholder":
            local[node] = inputs[node.name]
        elif node.op != "output":
            local[node] = graph.node_copy(node, local.__getitem__)
            if node.target is cache_forecast:
                local[node].kwargs = {**local[node].kwargs, "at": inputs[at.name]}
    graph.output(tuple(local[n] for n in flat_nodes(_results(variant))))
    return module


def _read(outer: Sequence[fx.Node], arms: Sequence[fx.GraphModule]) -> tuple[fx.Node, ...]:
    """What of `outer` an arm reads; the arms take nothing else from now on."""
    read = {n.name for arm in arms for n in placeholders(arm.graph) if n.users}
    for arm in arms:
        for node in placeholders(arm.graph):
            if node.name not in read:
                arm.graph.erase_node(node)
    return tuple(node for node in outer if node.name in read)


def _projections(graph: fx.Graph, made: fx.Node, like: Sequence[fx.Node]) -> Iterator[fx.Node]:
    """The parts of a tuple, with what is known of the nodes that they stand for."""
    take: Callable[[Any], Any] = lambda i: graph.call_function(operator.getitem, (made, i))  # noqa: E731
    for i, node in enumerate(like):
        part = take(i)
        part.meta = {k: v for k, v in node.meta.items() if k not in ("macs", "kind")}
        yield part


def _results(variant: Variant) -> Any:
    return cast("tuple[Any, ...]", output_node(variant.module.graph).args[0])[0]
