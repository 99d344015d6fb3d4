"""What the runtime reads of a step's inputs: when it is, the latents, and what steers the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ..passes.classify_inputs import LATENT_NAMES
from ..passes.ir import InputKind, StepGraph, kind_of, placeholders, value_of
from ..passes.names import argument_name
from ..passes.signature import graph_text
from ..passes.symbolic import numel_of, shape_of
from .clock import Clock
from .late_reads import waits
from .seen import GraphIdentity, read_timestep
from .track import Moment, Sighting


class StepInputs:
    """Reads moment and latents from the arguments of one compiled graph.

    `watched` are the indices of the inputs that are read; `steering` names those that may not
    change within a generation.
    """

    def __init__(self, graph: StepGraph) -> None:
        inputs = placeholders(graph.graph)
        self._timestep = timestep_index(inputs)
        self._latents = latent_indices(inputs, graph)
        # Numbers too: one that steers the model may not change within a generation. Sizes do not
        # count: that inputs change shape is seen without them.
        source = {i: str(n.meta.get("source", n.name)) for i, n in enumerate(inputs)}
        kinds = [kind_of(n) for n in inputs]
        steering = [
            i
            for i, k in enumerate(kinds)
            if k is InputKind.CONDITION or (k is InputKind.SCALAR and not is_size(source[i]))
        ]
        self._conditions = sorted(steering, key=lambda i: source[i])
        self.steering = tuple(source[i] for i in self._conditions)
        self._names = ("graph", *self.steering)
        symbolic = any(is_size(text) for text in source.values())
        self._identity = GraphIdentity(partial(graph_text, graph), symbolic)
        self.watched = {self._timestep, *self._latents, *self._conditions}

    def moment(self, args: Sequence[Any], clock: Clock) -> Moment | None:
        """Enter a call; None if neither input nor scope tells the time."""
        latents, steering = self.latents(args), self._steering(args)
        foreseen = clock.foresee(self.timestep(args), latents, steering, self._names)
        if foreseen is not None:
            return clock.enter(foreseen)
        timestep = read_timestep(self.timestep(args))
        return clock.tick(timestep, latents, steering, self._names)

    def look(self, args: Sequence[Any], clock: Clock) -> Sighting | None:
        """The moment of a call that is not entered yet; None if no input tells the time."""
        latents, steering = self.latents(args), self._steering(args)
        foreseen = clock.foresee(self.timestep(args), latents, steering, self._names)
        if foreseen is not None:
            return foreseen
        timestep = read_timestep(self.timestep(args))
        if timestep is None:
            return None
        return clock.look(timestep, latents, steering, self._names)

    def wait(self, args: Sequence[Any]) -> bool:
        """Whether reading the moment of a call waits for a device."""
        return any(waits(args[i]) for i in (*self._latents, self._timestep) if i is not None)

    def together(self, args: Sequence[Any]) -> bool:
        """Whether timestep and latents are tensors on one device."""
        read = [args[i] for i in (*self._latents, self._timestep) if i is not None]
        devices = {v.device if isinstance(v, Tensor) else None for v in read}
        return len(devices) == 1 and None not in devices

    def latents(self, args: Sequence[Any]) -> Tensor | None:
        """The latents of a call; a list of them (one tensor a sample) counts as one vector."""
        if len(self._latents) == 1:
            return args[self._latents[0]]
        parts = [args[i].reshape(-1) for i in self._latents]
        return torch.cat(parts) if parts else None

    def timestep(self, args: Sequence[Any]) -> Any:
        """The timestep of a call as the model gets it, None where no input tells it."""
        return args[self._timestep] if self._timestep is not None else None

    def _steering(self, args: Sequence[Any]) -> list[Any]:
        return [self._identity, *[args[i] for i in self._conditions]]


def is_size(source: str) -> bool:
    """Whether a number among the inputs is a size of another input."""
    return any(part in source for part in (".size()", ".stride()", ".storage_offset()"))


def timestep_index(inputs: Sequence[fx.Node]) -> int | None:
    """Where the timestep comes in; of several (a timestep and its sigma) the smallest."""
    found = [i for i, n in enumerate(inputs) if kind_of(n) is InputKind.TIMESTEP]
    return min(found, key=lambda i: len(shape_of(value_of(inputs[i]))), default=None)


def latent_indices(inputs: Sequence[fx.Node], graph: StepGraph) -> tuple[int, ...]:
    """Where the latents come in that the sampler integrates.

    A model may have other inputs that follow the latents, such as its last prediction; those that
    count are of one argument, and of the output's size where there is a choice.
    """
    groups: dict[str, list[int]] = {}
    for i, node in enumerate(inputs):
        if kind_of(node) is InputKind.LATENTS:
            groups.setdefault(argument_name(node), []).append(i)
    nodes = graph.nodes_by_name()
    outs = graph.region("denoiser").live_outs if graph.regions else ()
    size = sum(numel_of(value_of(nodes[name])) for name in outs)
    sizes = {k: sum(numel_of(value_of(inputs[i])) for i in v) for k, v in groups.items()}
    named = min(groups, key=lambda k: (abs(sizes[k] - size), k not in LATENT_NAMES), default=None)
    return () if named is None else tuple(groups[named])
