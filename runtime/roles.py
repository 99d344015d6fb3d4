"""Which of a step's inputs and outputs the runtime reads: timestep, latents, the denoiser's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from ..passes.classify_inputs import LATENT_NAMES
from ..passes.ir import InputKind, StepGraph, kind_of, output_node, value_of
from ..passes.names import argument_name
from ..passes.symbolic import numel_of, shape_of


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


def denoised_indices(graph: StepGraph) -> tuple[int, ...]:
    """Which of the step's outputs the denoiser gives; none where it gives anything else, too."""
    given = output_node(graph.graph).args[0]
    flat = given if isinstance(given, (tuple, list)) else (given,)
    names = [n.name if isinstance(n, fx.Node) else "" for n in flat]
    outs = graph.region("denoiser").live_outs if graph.regions else ()
    return tuple(names.index(o) for o in outs) if set(outs) <= set(names) else ()
