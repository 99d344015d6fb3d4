"""classify-inputs: what every input of the step is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from .base import PassContext, PassError, PassResult
from .ir import InputKind, StepGraph, flat_nodes, kind_of, output_node, placeholders, value_of
from .names import source_name
from .symbolic import numel_of, shape_of

LATENT_NAMES = frozenset(
    {"hidden_states", "sample", "latents", "latent", "x", "x_t", "noisy_latents"}
)
TIMESTEP_NAMES = frozenset({"timestep", "timesteps", "t", "sigma", "sigmas", "time", "noise_level"})
ROLES = {
    "latents": InputKind.LATENTS,
    "timestep": InputKind.TIMESTEP,
    "condition": InputKind.CONDITION,
    "parameter": InputKind.PARAMETER,
}


@dataclass(frozen=True)
class ClassifyInputs:
    """Tag each placeholder as parameter, latents, timestep, condition or scalar.

    The caller's word (`roles`) comes first, then Dynamo's mark of module state, then the name
    under which the caller passed the input, then shape: the timestep is the one input of at most
    one dimension that is left, the latents the one whose shape is the output's. What remains is
    condition: a wrong guess there costs speed, never truth, since condition values are checked
    for change at run time.

    Given::

        graph @step(%timestep: f32[2], %text: f32[2,7,8], %hidden_states: f32[2,16,8], …

    Result::

        graph @step(%timestep: f32[2] timestep, %text: f32[2,7,8] condition,
                    %hidden_states: f32[2,16,8] latents, 10 parameters)
    """

    name: ClassVar[str] = "classify-inputs"
    requires: ClassVar[frozenset[str]] = frozenset({"functional"})
    ensures: ClassVar[frozenset[str]] = frozenset({"classified"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Set `meta["kind"]` on every placeholder; raises PassError for an unknown role."""
        inputs = placeholders(graph.graph)
        # The user's inputs come last: a parameter of the same name must not hide one.
        named = sorted(inputs, key=lambda n: _obvious_kind(n) is not InputKind.PARAMETER)
        names = {source_name(n).rsplit(".", 1)[-1]: n for n in named}
        for key, role in ctx.roles.items():
            if key not in names:
                raise PassError(
                    f"classify-inputs: option inputs names {key!r}, but the step has no such "
                    f"input; it has {', '.join(_user_names(inputs)) or 'none'}"
                )
            if role not in ROLES:
                raise PassError(
                    f"classify-inputs: option inputs gives {key!r} the role {role!r}; "
                    f"expected one of {', '.join(ROLES)}"
                )
            names[key].meta["kind"] = ROLES[role]
        free: list[fx.Node] = []
        for node in inputs:
            if kind_of(node) is None or node.name not in {names[k].name for k in ctx.roles}:
                node.meta["kind"] = _obvious_kind(node)
                if node.meta["kind"] is None:
                    free.append(node)
        given = {kind_of(n) for n in inputs}
        if InputKind.TIMESTEP not in given and (t := _find_timestep(free)) is not None:
            t.meta["kind"] = InputKind.TIMESTEP
            free.remove(t)
        if InputKind.LATENTS not in given and (x := _find_latents(free, graph.graph)) is not None:
            x.meta["kind"] = InputKind.LATENTS
            free.remove(x)
        for node in free:
            node.meta["kind"] = InputKind.CONDITION
        counts = {str(k): sum(kind_of(n) is k for n in inputs) for k in InputKind}
        facts = graph.facts | self.ensures
        stats = {k: v for k, v in counts.items() if v}
        return PassResult(graph.with_(facts=facts), True, dict(stats))


def _user_names(inputs: list[fx.Node]) -> list[str]:
    return [source_name(n) for n in inputs if _obvious_kind(n) is not InputKind.PARAMETER]


def _obvious_kind(node: fx.Node) -> InputKind | None:
    marks = node.meta.get("tensor_dict") or {}
    value = value_of(node)
    if isinstance(value, torch.nn.Parameter) or "_dynamo_static_input_type" in marks:
        return InputKind.PARAMETER
    if isinstance(value, Tensor):
        return None
    text = str(getattr(node, "_dynamo_source", "") or "")
    if "TensorProperty" in text or ".size()" in text or re.fullmatch(r"s\d+", node.name):
        return InputKind.SCALAR
    return None if source_name(node).rsplit(".", 1)[-1] in TIMESTEP_NAMES else InputKind.SCALAR


def _find_timestep(free: list[fx.Node]) -> fx.Node | None:
    named = [n for n in free if source_name(n).rsplit(".", 1)[-1] in TIMESTEP_NAMES]
    if named:
        return named[0]
    flat = [n for n in free if _rank(n) <= 1 and _numel(n) > 0 and not _is_constant(n)]
    floating = [n for n in flat if _is_floating(n)]
    # Of several vectors the floating one is the time: class labels and lengths are integers.
    for candidates in (floating, flat):
        if len(candidates) == 1:
            return candidates[0]
    return None


def _find_latents(free: list[fx.Node], graph: fx.Graph) -> fx.Node | None:
    tensors = [n for n in free if _rank(n) >= 2 and _is_floating(n)]
    named = [n for n in tensors if source_name(n).rsplit(".", 1)[-1] in LATENT_NAMES]
    if named:
        return named[0]
    outs = [value_of(n) for n in flat_nodes(output_node(graph).args)]
    shapes = [shape_of(v) for v in outs if isinstance(v, Tensor)]
    for same in (
        lambda n, s: _shape(n) == s,
        lambda n, s: (
            len(_shape(n)) == len(s) and sum(a != b for a, b in zip(_shape(n), s, strict=True)) == 1
        ),
    ):
        hits = [n for n in tensors if any(same(n, s) for s in shapes)]
        if hits:
            return hits[0]
    return max(tensors, key=_numel, default=None)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return shape_of(value_of(node))


def _rank(node: fx.Node) -> int:
    return len(_shape(node))


def _numel(node: fx.Node) -> int:
    value = value_of(node)
    return numel_of(value) if isinstance(value, Tensor) else 1


def _is_floating(node: fx.Node) -> bool:
    value = value_of(node)
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_constant(node: fx.Node) -> bool:
    """Whether it is a float of a submodule (an eps), which a dynamic trace makes an input."""
    value = value_of(node)
    wrapped = isinstance(value, Tensor) and value.dtype == torch.float64 and _rank(node) == 0
    return wrapped and "." in source_name(node)
