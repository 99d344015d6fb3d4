"""The intermediate representation: one denoising step as an FX graph, plus what ditcache knows.

A `StepGraph` wraps the FX graph that Dynamo traced. Caching is expressed by a handful of ops
(`ops`: forecast, write, probe, decide, cond …), by regions (named sets of nodes with explicit
live-ins and live-outs) and by slots (the storage of one live-out). Every op has a reference meaning
in plain torch, so that a graph can be interpreted at any stage of the pipeline.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import fx

from ..kernels.formats import FORMATS
from .profile import Profile
from .symbolic import Size, hint


class InputKind(enum.StrEnum):
    """What a placeholder of the step graph carries."""

    PARAMETER = "parameter"  # weights and buffers
    LATENTS = "latents"  # changes at every step, and is what the sampler integrates
    TIMESTEP = "timestep"
    CONDITION = "condition"  # prompt, class, guidance, position ids: constant over a generation
    SCALAR = "scalar"  # a size that Dynamo made symbolic
    SLOT = "slot"  # cache storage, [K, *shape], newest entry first in the reference meaning
    WEIGHTS = "weights"  # f32[K], the forecast's row for this step
    PREDICATE = "predicate"  # i1, true where the plan says: forecast
    HOISTED = "hoisted"  # a value that a prologue computed
    CARRIED = "carried"  # a value that the head computed, on its way into a tail
    GRID = "grid"  # f32 on the device: the plan's timesteps, their tolerance, a rule's limit
    STATE = "state"  # what a device knows of the generation: its clock, what a probe decided


class Depends(enum.IntFlag):
    """What a value can change with; the lattice of the dependence analysis (join is `|`)."""

    CONST = 0
    CONDITION = 1
    STEP = 2
    LATENT = 4

    @property
    def rank(self) -> int:
        """Height in the chain const < condition < step < latent."""
        return int(self).bit_length()

    @property
    def stability(self) -> str:
        """The proof-backed stability class: const, condition, step or volatile."""
        if self & Depends.LATENT:
            return "volatile"
        if self & Depends.STEP:
            return "step"
        return "condition" if self & Depends.CONDITION else "const"


@dataclass(frozen=True)
class Region:
    """A connected, single-purpose subgraph.

    `nodes`, `live_ins` and `live_outs` are node names in graph order. `kind` is one of denoiser,
    block, run (contiguous blocks), branch or deep; `path` the module path that the region covers;
    `role` what a branch is for: attention, cross-attention or mlp.
    """

    name: str
    kind: str
    path: str
    nodes: tuple[str, ...]
    live_ins: tuple[str, ...]
    live_outs: tuple[str, ...]
    macs: int = 0
    weight_bytes: int = 0
    live_bytes: int = 0
    stability: str = "volatile"
    drift: float | None = None  # mean relative change from one step to the next, measured
    refusal: str | None = None  # why the region cannot be cached, None if it can
    role: str = ""

    @property
    def label(self) -> str:
        """The stability as the printer shows it: a proof, or a measurement with its value."""
        return self.stability if self.drift is None else f"{self.stability} d={self.drift:.3f}"


@dataclass(frozen=True)
class Slot:
    """Cache storage of one live-out: the last `history` computed values.

    `what` is stored: the live-out itself ("output") or what the region added to its live-in
    ("delta"). A `reference` slot serves a probe instead of a forecast: it holds the probed value of
    the "previous" step or of the last "computed" one; `measured` asks the runtime how far each
    write of it moves. `format` is the storage format (`kernels.formats`), "" for the value's own.
    """

    name: str
    region: str
    value: str  # node name of the live-out
    shape: tuple[Size, ...]
    dtype: torch.dtype
    history: int
    group: str = ""  # the plan's name for it, where several regions share one schedule
    what: str = "output"
    reference: str = ""
    measured: bool = False
    format: str = ""

    @property
    def owner(self) -> str:
        """The schedule (or recording) that the slot belongs to."""
        return self.group or self.region

    @property
    def nbytes(self) -> int:
        """Bytes of the whole history at the traced shape, as it is stored."""
        numbers = math.prod(hint(d) for d in self.shape)
        each = FORMATS[self.format].nbytes(numbers) if self.format else None
        return self.history * (numbers * self.dtype.itemsize if each is None else each)


@dataclass(frozen=True)
class Prologue:
    """Work hoisted out of the step: a graph of its own, run again only when its inputs change."""

    name: str  # "condition" or "step"
    module: fx.GraphModule
    outputs: tuple[str, ...]  # placeholder names of the values in the step graph
    macs: int = 0


@dataclass(frozen=True)
class Variant:
    """The step specialised to one choice of compute/forecast for every scheduled region.

    `modes[i]` is true where region i is forecast. The module's output is `(outputs, writes)`,
    where `writes` are the values to push into the slots named by `writes`.

    Where a probe decides, a step is a `head`, whose output is `(probes, carried values)`, and one
    of several `tail`s, which take what they need of the carried values as inputs; `carried` names
    them. The `whole` variants need no decision. A `decided` one holds a conditional that a device
    decides: it is forecast unless that says otherwise (lower-cond).
    """

    modes: tuple[bool, ...]
    module: fx.GraphModule
    writes: tuple[str, ...]
    macs: int = 0
    stage: str = "whole"  # or "head", "tail", "decided"
    carried: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepGraph:
    """One denoising step on its way through the pipeline. Passes return a new one."""

    name: str
    module: fx.GraphModule
    regions: tuple[Region, ...] = ()
    slots: tuple[Slot, ...] = ()
    scheduled: tuple[str, ...] = ()  # regions that have a cache.cond, in graph order
    # The schedule of each scheduled region: its own name, or a selector that several share.
    schedules: Mapping[str, str] = field(default_factory=dict[str, str])
    prologues: tuple[Prologue, ...] = ()
    variants: tuple[Variant, ...] = ()
    facts: frozenset[str] = field(default_factory=frozenset[str])  # established properties
    profile: Profile | None = None

    @property
    def graph(self) -> fx.Graph:
        """The FX graph of the step."""
        return self.module.graph

    def node(self, name: str) -> fx.Node:
        """The node called `name`; raises KeyError if there is none."""
        for n in self.graph.nodes:
            if n.name == name:
                return n
        raise KeyError(name)

    def nodes_by_name(self) -> dict[str, fx.Node]:
        """All nodes, by name."""
        return {n.name: n for n in self.graph.nodes}

    def region(self, name: str) -> Region:
        """The region called `name`; raises KeyError naming those that exist."""
        for r in self.regions:
            if r.name == name:
                return r
        known = ", ".join(r.name for r in self.regions)
        raise KeyError(f"no region {name!r}; this graph has: {known}")

    def with_(self, **changes: Any) -> StepGraph:
        """A copy with the given fields replaced."""
        return replace(self, **changes)


# Metadata and small helpers ---------------------------------------------------------------------


def kind_of(node: fx.Node) -> InputKind | None:
    """The input kind of a placeholder, None before classify-inputs or for other nodes."""
    return cast("InputKind | None", node.meta.get("kind"))


def depends_of(node: fx.Node) -> Depends:
    """What the node's value changes with; LATENT (the safe answer) before the analysis ran."""
    return cast(Depends, node.meta.get("depends", Depends.LATENT))


def value_of(node: fx.Node) -> Any:
    """The fake value (tensor, tuple or symbolic number) that the trace left on the node."""
    meta = node.meta
    return meta["example_value"] if "example_value" in meta else meta.get("val")


def set_value(node: fx.Node, value: Any) -> None:
    """Attach a fake value to a node that a pass made."""
    node.meta["example_value"] = value


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    """The graph's inputs in call order."""
    return [n for n in graph.nodes if n.op == "placeholder"]


def output_node(graph: fx.Graph) -> fx.Node:
    """The graph's single output node."""
    return next(n for n in reversed(graph.nodes) if n.op == "output")


def flat_nodes(value: Any) -> Iterator[fx.Node]:
    """All nodes inside a nested FX argument."""
    found: list[fx.Node] = []
    fx.map_arg(value, lambda n: (found.append(n), n)[1])
    yield from found
