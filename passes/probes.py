"""Probes: the values that a decision at run time looks at, and the work that precedes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from .base import PassError
from .effects import op_base
from .ir import Depends, InputKind, StepGraph, depends_of, kind_of, placeholders
from .modules import needed
from .plan_format import DecisionRule, ProbePoint
from .roles import PRODUCTS, partners
from .selectors import chain, resolve


@dataclass(frozen=True)
class ProbeValue:
    """A probe point bound to a graph: the node `value`, less the node `base` where it is a delta.

    `slot` names the reference slot.
    """

    point: ProbePoint
    slot: str
    value: str
    base: str | None = None


def probe_values(graph: StepGraph, rule: DecisionRule | None) -> tuple[ProbeValue, ...]:
    """Bind a rule's probe points to a graph; raises PassError for one that it does not have."""
    if rule is None:
        return ()
    return tuple(_bind(graph, point, f"probe.{i}") for i, point in enumerate(rule.probes))


def head_nodes(graph: StepGraph, probes: Sequence[ProbeValue]) -> frozenset[str]:
    """Names of the calls that have to run before the decision."""
    nodes = graph.nodes_by_name()
    todo = [
        nodes[name]
        for probe in probes
        if not probe.point.measured
        for name in (probe.value, probe.base)
        if name is not None
    ]
    return frozenset(n.name for n in upstream(todo))


def upstream(values: Sequence[fx.Node]) -> set[fx.Node]:
    """The calls that these values need, themselves included."""
    return {node for node in needed(values) if node.op.startswith("call")}


def _bind(graph: StepGraph, point: ProbePoint, slot: str) -> ProbeValue:
    if point.value == "latents":
        inputs = placeholders(graph.graph)
        return ProbeValue(
            point, slot, next(n.name for n in inputs if kind_of(n) is InputKind.LATENTS)
        )
    if point.value == "output":
        return ProbeValue(point, slot, graph.region("denoiser").live_outs[0])
    if point.value == "modulated":
        return ProbeValue(point, slot, _modulated(graph))
    selector, _, delta = point.value.rpartition(" ")
    if delta != "delta" or not selector:
        raise PassError(
            f"no probe {point.value!r}; there are latents, output, modulated, and 'SELECTOR delta'"
        )
    region = resolve(graph, selector)[0]
    pairs = partners(graph, region)
    nodes = graph.nodes_by_name()
    latent = (out for out, made in pairs.items() if depends_of(nodes[made]) & Depends.LATENT)
    value = next(latent, None)
    if value is None:
        raise PassError(f"{selector} has no residual stream from the latents to probe")
    return ProbeValue(point, slot, value, pairs[value])


def _modulated(graph: StepGraph) -> str:
    """What the first block's first matrix product of latent work reads: TeaCache's indicator."""
    blocks = chain(graph)
    inside = set(blocks[0].nodes) if blocks else set[str]()
    for node in graph.graph.nodes:
        if node.name in inside and op_base(node) in PRODUCTS and node.all_input_nodes:
            read = node.all_input_nodes[0]
            if depends_of(read) & Depends.LATENT and read.op.startswith("call"):
                return read.name
    raise PassError("no matrix product in the first block reads a modulated value to probe")
