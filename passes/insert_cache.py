"""insert-cache: slots, and a conditional around every scheduled region."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, fx

from .base import PassContext, PassError, PassResult
from .grouping import ordered_groups
from .ir import (
    Depends,
    InputKind,
    Region,
    Slot,
    StepGraph,
    cache_cond,
    cache_forecast,
    cache_write,
    kind_of,
    output_node,
    placeholders,
    relayout,
    set_value,
    value_of,
)
from .symbolic import is_dense, is_static, stride_of


@dataclass(frozen=True)
class InsertCache:
    """Wrap each scheduled region in a `cache.cond`: forecast its live-outs, or compute and write.

    With `ctx.record`, regions of those kinds get a `cache.write` of their live-outs instead: the
    step computes in full and hands out what the profile needs.

    Given::

        %mul = mul(%x, %emb) : f32[2,16,8] @blocks.0
        %linear_3 = linear(%mul, …) : f32[2,16,8] @blocks.0.mlp
        %h = add(%x, %linear_3) : f32[2,16,8] @blocks.0

    Result::

        slot $blocks.0.mlp : f32[2,16,8] x2  2.0 KiB
        …
        %cache_cond = cache.cond %plan_blocks_0_mlp $blocks.0.mlp {
          hit:
            %cache_forecast = cache.forecast $blocks.0.mlp, %weights_blocks_0_mlp : f32[2,16,8]
            yield (%cache_forecast,)
          miss:
            %mul = mul(%x, %emb) : f32[2,16,8] @blocks.0
            %linear_3 = linear(%mul, …) : f32[2,16,8] @blocks.0.mlp
            %cache_write = cache.write $blocks.0.mlp, %linear_3 : f32[2,16,8]
            yield (%linear_3,)
        }
        %getitem_1 = getitem(%cache_cond, 0) : f32[2,16,8] @blocks.0.mlp
        %h = add(%x, %getitem_1) : f32[2,16,8] @blocks.0
    """

    name: ClassVar[str] = "insert-cache"
    requires: ClassVar[frozenset[str]] = frozenset({"regions", "planned"})
    ensures: ClassVar[frozenset[str]] = frozenset({"cached"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Rewrite the graph; raises PassError where slots do not fit the budget."""
        facts = graph.facts | self.ensures
        history = {s.region: s.history for s in ctx.plan.regions} if ctx.plan else {}
        cached = [graph.region(name) for name in graph.scheduled]
        inside = {n for r in cached for n in r.nodes}  # a conditional hides what it computes
        recorded = [
            r
            for r in graph.regions
            if r.kind in ctx.record and r.refusal is None and inside.isdisjoint(r.live_outs)
        ]
        if not cached and not recorded:
            return PassResult(graph.with_(facts=facts), False, {"slots": 0})
        nodes = graph.nodes_by_name()
        slots = [s for r in cached for s in make_slots(r, nodes, history[r.name])]
        if ctx.slot_budget is not None and (need := sum(s.nbytes for s in slots)) > ctx.slot_budget:
            raise PassError(
                f"insert-cache: slots need {need} bytes, the budget is {ctx.slot_budget}; "
                "raise slot_budget, or plan a smaller history or region"
            )
        slots += [s for r in recorded for s in make_slots(r, nodes, 1)]
        module = _rewrite(graph, cached, recorded, slots)
        done = graph.with_(module=module, slots=tuple(slots), facts=facts)
        total = sum(s.nbytes for s in slots)
        return PassResult(done, True, {"slots": len(slots), "slot bytes": total})


def make_slots(region: Region, nodes: dict[str, fx.Node], history: int) -> list[Slot]:
    """One slot per live-out; a region with one live-out gives the slot its own name."""
    slots: list[Slot] = []
    for i, name in enumerate(region.live_outs):
        value = cast(Tensor, value_of(nodes[name]))
        slot = region.name if len(region.live_outs) == 1 else f"{region.name}.{i}"
        slots.append(Slot(slot, region.name, name, tuple(value.shape), value.dtype, history))
    return slots


def identifier(name: str) -> str:
    """A slot's or region's name as a Python identifier."""
    return "".join(c if c.isalnum() else "_" for c in name)


def _rewrite(
    graph: StepGraph, cached: list[Region], recorded: list[Region], slots: list[Slot]
) -> fx.GraphModule:
    old = graph.graph
    root = fx.GraphModule(graph.module, fx.Graph())
    new = root.graph
    env: dict[fx.Node, fx.Node] = {}
    for node in placeholders(old):
        env[node] = new.node_copy(node, env.__getitem__)
    slot_inputs = {s.name: _input(new, f"slot_{identifier(s.name)}", InputKind.SLOT) for s in slots}
    for slot in slots:
        _give_value(slot_inputs[slot.name], slot, old)
    owner = {n: r for r in cached for n in r.nodes}
    writes: defaultdict[str, list[Slot]] = defaultdict(list)
    for slot in slots:
        if slot.region in {r.name for r in recorded}:
            writes[slot.value].append(slot)
    for group in ordered_groups(old, owner):
        region = owner.get(group[0].name)
        if region is not None:
            own = [s for s in slots if s.region == region.name]
            _emit_cond(root, region, group, own, slot_inputs, env)
            continue
        for node in group:
            env[node] = new.node_copy(node, env.__getitem__)
            for slot in writes.get(node.name, ()):
                made = new.call_function(cache_write, (slot_inputs[slot.name], env[node]))
                made.meta["depends"] = Depends.LATENT
                set_value(made, value_of(node))
    new.output(fx.map_arg(output_node(old).args[0], env.__getitem__))
    root.recompile()
    root.meta = dict(graph.module.meta)
    return root


def _input(graph: fx.Graph, name: str, kind: InputKind) -> fx.Node:
    node = graph.placeholder(name)
    node.meta["kind"] = kind
    node.meta["depends"] = Depends.LATENT
    return node


def _give_value(node: fx.Node, slot: Slot, old: fx.Graph) -> None:
    node.meta["slot"] = slot.name
    like = next(n for n in old.nodes if n.name == slot.value)
    value = cast(Tensor, value_of(like))
    with getattr(value, "fake_mode", torch.no_grad()):
        ring = torch.empty((slot.history, *value.shape), dtype=value.dtype, device=value.device)
    set_value(node, ring)


def _emit_cond(  # noqa: PLR0917
    root: fx.GraphModule,
    region: Region,
    group: Sequence[fx.Node],
    slots: list[Slot],
    slot_inputs: dict[str, fx.Node],
    env: dict[fx.Node, fx.Node],
) -> None:
    new = root.graph
    ident = identifier(region.name)
    last_input = placeholders(new)[-1]
    with new.inserting_after(last_input):
        weights = _input(new, f"weights_{ident}", InputKind.WEIGHTS)
    with new.inserting_after(last_input):
        pred = _input(new, f"plan_{ident}", InputKind.PREDICATE)
    pred.meta["region"] = weights.meta["region"] = region.name
    first = slots[0]
    ring = cast(Tensor, value_of(slot_inputs[first.name]))
    with getattr(ring, "fake_mode", torch.no_grad()):
        set_value(weights, torch.empty(first.history, dtype=torch.float32, device=ring.device))
    inside = set(group)
    operands = list(dict.fromkeys(a for n in group for a in n.all_input_nodes if a not in inside))
    outs = {s.value: s for s in slots}

    miss = fx.Graph()
    local: dict[fx.Node, fx.Node] = {}
    for arg in operands:
        local[arg] = _operand(miss, env[arg])
    rings = {s.name: _operand(miss, slot_inputs[s.name]) for s in slots}
    _operand(miss, weights)
    for node in group:
        local[node] = miss.node_copy(node, local.__getitem__)
    yielded = {n.name: local[n] for n in group if n.name in outs}
    for value, slot in outs.items():
        made = miss.call_function(cache_write, (rings[slot.name], yielded[value]))
        set_value(made, value_of(yielded[value]))
    miss.output(tuple(yielded[value] for value in outs))

    hit = fx.Graph()
    for arg in operands:
        _operand(hit, env[arg])
    hit_rings = {s.name: _operand(hit, slot_inputs[s.name]) for s in slots}
    row = _operand(hit, weights)
    forecasts: list[fx.Node] = []
    for value, slot in outs.items():
        made = hit.call_function(cache_forecast, (hit_rings[slot.name], row))
        forecasts.append(_as_traced(made, cast(Tensor, value_of(yielded[value]))))
    hit.output(tuple(forecasts))

    while hasattr(root, f"hit_{ident}"):  # two region names may make one identifier
        ident += "_"
    root.add_submodule(f"hit_{ident}", fx.GraphModule(root, hit))
    root.add_submodule(f"miss_{ident}", fx.GraphModule(root, miss))
    arms = (new.get_attr(f"hit_{ident}"), new.get_attr(f"miss_{ident}"))
    passed = (*(env[a] for a in operands), *(slot_inputs[s.name] for s in slots), weights)
    cond = new.call_function(cache_cond, (pred, *arms, passed))
    cond.meta.update(depends=Depends.LATENT, region=region.name)
    by_name = {n.name: n for n in group}
    set_value(cond, tuple(value_of(by_name[v]) for v in outs))
    for i, value in enumerate(outs):
        part = new.call_function(operator.getitem, (cond, i))
        part.meta = {k: v for k, v in by_name[value].meta.items() if k != "macs"}
        env[by_name[value]] = part


def _as_traced(forecast: fx.Node, traced: Tensor) -> fx.Node:
    """The forecast in the memory layout that the traced value has; what follows may rely on it."""
    with getattr(traced, "fake_mode", torch.no_grad()):
        set_value(forecast, torch.empty(traced.shape, dtype=traced.dtype, device=traced.device))
    if is_dense(traced) or not is_static(traced):
        return forecast
    stride = stride_of(traced)
    made = forecast.graph.call_function(relayout, (forecast, stride))
    with getattr(traced, "fake_mode", torch.no_grad()):
        set_value(
            made,
            torch.empty_strided(traced.shape, stride, dtype=traced.dtype, device=traced.device),
        )
    return made


def _operand(graph: fx.Graph, outer: fx.Node) -> fx.Node:
    node = graph.placeholder(outer.name)
    node.meta = {k: v for k, v in outer.meta.items() if k != "macs"}
    if kind_of(outer) is None:
        node.meta["kind"] = InputKind.HOISTED if not outer.meta.get("depends") else None
    return node
