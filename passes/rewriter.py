"""The rewriting of insert-cache: a graph with slots, conditionals, probes and writes."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, fx

from .base import PassError
from .cached_regions import Cached
from .grouping import ordered_groups
from .ir import Depends, InputKind, Slot, StepGraph, output_node, placeholders, set_value, value_of
from .made_nodes import as_traced, delta, graph_name, operand
from .modules import module_of
from .ops import cache_cond, cache_decide, cache_forecast, cache_probe, cache_write
from .probes import ProbeValue

Write = tuple[Slot, fx.Node, fx.Node | None]  # slot, value, the base that is taken from it


def identifier(name: str) -> str:
    """A slot's or region's name as a Python identifier."""
    return "".join(c if c.isalnum() else "_" for c in name)


class Rewriter:
    """Copies a step into a new graph in which regions are conditionals and slots are inputs.

    `threshold` is what a probe's decision compares with, where nothing but the step itself counts.
    """

    def __init__(self, graph: StepGraph, slots: Sequence[Slot], threshold: float) -> None:
        self.graph = graph
        self.threshold = threshold
        self.nodes = graph.nodes_by_name()
        self.root = module_of(graph.module, fx.Graph())
        self.new = self.root.graph
        self.env: dict[fx.Node, fx.Node] = {}
        for node in placeholders(graph.graph):
            self.env[node] = self.new.node_copy(node, self.env.__getitem__)
        self.slots = {s.name: self._slot_input(s) for s in slots}
        self.switches: dict[str, tuple[fx.Node, fx.Node]] = {}  # schedule -> predicate, weights
        self.decision: fx.Node | None = None
        self.probed: dict[str, fx.Node] = {}  # probe slot -> the value that was probed

    def run(
        self,
        cached: Sequence[Cached],
        recorded: Sequence[Cached],
        probes: Mapping[ProbeValue, Slot],
    ) -> fx.GraphModule:
        """The rewritten module."""
        owner = {n: c.region for c in cached for n in c.region.nodes}
        by_name = {c.region.name: c for c in cached}
        writes: defaultdict[str, list[Write]] = defaultdict(list)
        for entry in recorded:
            for slot in entry.slots:
                base = entry.base.get(slot.value)
                writes[slot.value].append((slot, self.nodes[slot.value], self._old(base)))
        inner = self._inner_writes(probes, [c.region.name for c in cached])
        watched = [p for p in probes if not p.point.measured]
        first = [self.nodes[p.value] for p in watched]
        for probe in watched:
            if self.nodes[probe.value].op == "placeholder":
                self._probe(probe, probes, watched)
        for group in ordered_groups(self.graph.graph, owner, first):
            region = owner.get(group[0].name)
            if region is not None:
                self._cond(by_name[region.name], group, inner[region.name])
                continue
            for node in group:
                self.env[node] = self.new.node_copy(node, self.env.__getitem__)
                for write in writes.get(node.name, ()):
                    self._write(write)
                for probe in watched:
                    if probe.value == node.name:
                        self._probe(probe, probes, watched)
        output = output_node(self.graph.graph).args[0]
        self.new.output(fx.map_arg(output, self.env.__getitem__))
        return self.root

    # Inputs ----------------------------------------------------------------------------------

    def _input(self, name: str, kind: InputKind) -> fx.Node:
        node = self.new.placeholder(name)
        node.meta.update(kind=kind, depends=Depends.LATENT)
        return node

    def _slot_input(self, slot: Slot) -> fx.Node:
        node = self._input(f"slot_{identifier(slot.name)}", InputKind.SLOT)
        node.meta["slot"] = slot.name
        value = cast(Tensor, value_of(self.nodes[slot.value]))
        with getattr(value, "fake_mode", torch.no_grad()):
            shape = (slot.history, *value.shape)
            set_value(node, torch.empty(shape, dtype=value.dtype, device=value.device))
        return node

    def _switch(self, slot: Slot) -> tuple[fx.Node, fx.Node]:
        """Predicate and weights of a slot's schedule, inputs that its regions share."""
        known = self.switches.get(slot.owner)
        if known is not None:
            return known
        ident = identifier(slot.owner)
        last = placeholders(self.new)[-1]
        with self.new.inserting_after(last):
            weights = self._input(f"weights_{ident}", InputKind.WEIGHTS)
        if self.decision is None:
            with self.new.inserting_after(last):
                pred = self._input(f"plan_{ident}", InputKind.PREDICATE)
        else:
            pred = self.decision
        pred.meta["region"] = weights.meta["region"] = slot.owner
        ring = cast(Tensor, value_of(self.slots[slot.name]))
        with getattr(ring, "fake_mode", torch.no_grad()):
            set_value(weights, torch.empty(slot.history, dtype=torch.float32, device=ring.device))
        self.switches[slot.owner] = pred, weights
        return pred, weights

    # Probes and writes -----------------------------------------------------------------------

    def _inner_writes(
        self, probes: Mapping[ProbeValue, Slot], cached: list[str]
    ) -> defaultdict[str, list[Write]]:
        """By region: the references that its miss arm writes, because they are of computed steps.

        Values that precede the decision are written by the first region.
        """
        found: defaultdict[str, list[Write]] = defaultdict(list)
        position = {n.name: i for i, n in enumerate(self.graph.graph.nodes)}
        for probe, slot in probes.items():
            if probe.point.reference == "previous":
                continue
            inside = [n for n in cached if probe.value in self.graph.region(n).nodes]
            before = position[probe.value] < position[self.graph.region(cached[0]).nodes[-1]]
            if not inside and not before:
                raise PassError(
                    f"insert-cache: the probe of %{probe.value} is measured after the cached "
                    "regions; measure a value in or before them"
                )
            write = (slot, self.nodes[probe.value], self._old(probe.base))
            found[inside[0] if inside else cached[0]].append(write)
        return found

    def _old(self, name: str | None) -> fx.Node | None:
        return None if name is None else self.nodes[name]

    def _probe(
        self, probe: ProbeValue, probes: Mapping[ProbeValue, Slot], watched: list[ProbeValue]
    ) -> None:
        """A probe of a value that is just computed; after the last one, the decision."""
        slot = probes[probe]
        node, base = self.nodes[probe.value], self._old(probe.base)
        value = delta(self.new, self.env[node], None if base is None else self.env[base])
        self.probed[slot.name] = self.env[value] = value
        made = self.new.call_function(cache_probe, (value, self.slots[slot.name]))
        made.meta.update(depends=Depends.LATENT, probe=slot.name)
        like = cast(Tensor, value_of(value))
        with getattr(like, "fake_mode", torch.no_grad()):
            set_value(made, torch.empty(2, dtype=torch.float32, device=like.device))
        if slot.reference == "previous":
            self._write((slot, value, None))
        done = [n for n in self.new.nodes if n.target is cache_probe]
        if len(done) == len(watched):
            self.decision = self.new.call_function(cache_decide, (self.threshold, *done))
            self.decision.meta.update(depends=Depends.LATENT, runs="host")

    def _write(self, write: Write) -> None:
        slot, node, base = write
        value = delta(self.new, self.env[node], None if base is None else self.env[base])
        made = self.new.call_function(cache_write, (self.slots[slot.name], value))
        made.meta["depends"] = Depends.LATENT
        set_value(made, value_of(value))

    # Conditionals ----------------------------------------------------------------------------

    def _cond(self, cached: Cached, group: Sequence[fx.Node], writes: Sequence[Write]) -> None:
        slots, region = cached.slots, cached.region
        extra = [
            (s, self.probed.get(s.name, n), None if s.name in self.probed else b)
            for s, n, b in writes
        ]
        pred, weights = self._switch(slots[0])
        inside = set(group)
        wanted = [a for n in group for a in n.all_input_nodes]
        wanted += [self.nodes[name] for name in cached.base.values()]
        wanted += [n for _, value, base in extra for n in (value, base) if n is not None]
        operands = list(dict.fromkeys(a for a in wanted if a not in inside))
        rings = [s.name for s in slots]
        hit = self._hit(cached, operands, weights, extra)
        miss = self._miss(cached, operands, weights, group, extra)

        ident = identifier(region.name)
        while hasattr(self.root, f"hit_{ident}"):  # two region names may make one identifier
            ident += "_"
        self.root.add_submodule(f"hit_{ident}", module_of(self.root, hit))
        self.root.add_submodule(f"miss_{ident}", module_of(self.root, miss))
        arms = graph_name(self.new, f"hit_{ident}"), graph_name(self.new, f"miss_{ident}")
        rings += [s.name for s, _, _ in extra]
        passed = (*(self.env[a] for a in operands), *(self.slots[r] for r in rings), weights)
        cond = self.new.call_function(cache_cond, (pred, *arms, passed))
        cond.meta.update(depends=Depends.LATENT, region=region.name)
        set_value(cond, tuple(value_of(self.nodes[s.value]) for s in slots))
        for i, slot in enumerate(slots):
            part = self.new.call_function(operator.getitem, (cond, i))
            value = self.nodes[slot.value]
            part.meta = {k: v for k, v in value.meta.items() if k != "macs"}
            self.env[value] = part

    def _hit(
        self,
        cached: Cached,
        operands: Sequence[fx.Node],
        weights: fx.Node,
        extra: Sequence[Write],
    ) -> fx.Graph:
        graph, local, rings, row = self._arm(cached, operands, weights, extra)
        made: list[fx.Node] = []
        for slot in cached.slots:
            traced = cast(Tensor, value_of(self.nodes[slot.value]))
            base = cached.base.get(slot.value)
            added = () if base is None else (local[self.nodes[base]],)
            value = graph.call_function(cache_forecast, (rings[slot.name], row, *added))
            with getattr(traced, "fake_mode", torch.no_grad()):
                fresh = torch.empty(traced.shape, dtype=traced.dtype, device=traced.device)
            set_value(value, fresh)
            made.append(as_traced(value, traced))
        graph.output(tuple(made))
        return graph

    def _miss(
        self,
        cached: Cached,
        operands: Sequence[fx.Node],
        weights: fx.Node,
        group: Sequence[fx.Node],
        extra: Sequence[Write],
    ) -> fx.Graph:
        graph, local, rings, _ = self._arm(cached, operands, weights, extra)
        for node in group:
            local[node] = graph.node_copy(node, local.__getitem__)
        writes: list[Write] = [
            (s, self.nodes[s.value], self._old(cached.base.get(s.value))) for s in cached.slots
        ]
        for slot, node, base in (*writes, *extra):
            value = delta(graph, local[node], None if base is None else local[base])
            made = graph.call_function(cache_write, (rings[slot.name], value))
            set_value(made, value_of(value))
        graph.output(tuple(local[self.nodes[s.value]] for s in cached.slots))
        return graph

    def _arm(
        self,
        cached: Cached,
        operands: Sequence[fx.Node],
        weights: fx.Node,
        extra: Sequence[Write],
    ) -> tuple[fx.Graph, dict[fx.Node, fx.Node], dict[str, fx.Node], fx.Node]:
        graph = fx.Graph()
        local = {arg: operand(graph, self.env[arg]) for arg in operands}
        names = [s.name for s in cached.slots] + [s.name for s, _, _ in extra]
        rings = {name: operand(graph, self.slots[name]) for name in names}
        return graph, local, rings, operand(graph, weights)
