"""classify-inputs: what every input of the step is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from .base import PassContext, PassError, PassResult
from .ir import InputKind, StepGraph, flat_nodes, kind_of, output_node, placeholders, value_of
from .names import argument_name, source_name
from .symbolic import numel_of, shape_of

LATENT_NAMES = frozenset(
    "hidden_states sample latents latent x x_t xt z z_t zt noisy noisy_latents noisy_images "
    "noisy_image noisy_sample noise_images".split()
)
TIMESTEP_NAMES = frozenset(
    "timestep timesteps t ts time times sigma sigmas noise_level noise_levels noise_labels "
    "noise_cond c_noise log_snr logsnr lambda_t".split()
)
# Parts of names of vectors that are no time, as classes and guidance scales.
NO_TIME = ("guid", "cfg", "label", "class", "mask", "length", "_ids", "fps", "scale", "size")
# Parts of names of what another model makes of the latents at every step, to be added inside.
FOLLOWING = ("residual", "controlnet")
INPUT_ROLES = {
    "latents": InputKind.LATENTS,
    "timestep": InputKind.TIMESTEP,
    "condition": InputKind.CONDITION,
    "parameter": InputKind.PARAMETER,
}


@dataclass(frozen=True)
class ClassifyInputs:
    """Tag each placeholder as parameter, latents, timestep, condition or scalar.

    The caller's word (`roles`) comes first, then Dynamo's mark of module state, then the name of
    the argument, then shape: the timestep is the one input left with one number a sample, the
    latents the one whose shape is most like an output's. Latents that come in a list (one tensor a
    sample) are all latents, and so is what a side network makes of them (a ControlNet's residuals);
    of several timesteps the smallest is read. Where no tensor tells the time, the only number among
    the arguments does (a step that is counted in Python). What remains is condition: a wrong guess
    there costs speed, never truth, since condition values are checked for change at run time.

    Given::

        graph @step(%timestep: f32[2], %text: f32[2,7,8], %hidden_states: f32[2,16,8], …

    Result::

        graph @step(%timestep: f32[2] timestep, %text: f32[2,7,8] condition, %hidden_states: …
    """

    name: ClassVar[str] = "classify-inputs"
    requires: ClassVar[frozenset[str]] = frozenset({"functional"})
    ensures: ClassVar[frozenset[str]] = frozenset({"classified"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Set `meta["kind"]` on every placeholder; raises PassError for an unknown role."""
        inputs = placeholders(graph.graph)
        users = [n for n in inputs if _obvious_kind(n) is not InputKind.PARAMETER]
        chosen: set[fx.Node] = set()
        for key, role in ctx.roles.items():
            # A parameter of the same name must not hide an input of the user's.
            named = [n for n in users if key in (argument_name(n), source_name(n))]
            named = named or [n for n in inputs if key in (argument_name(n), source_name(n))]
            if not named:
                raise PassError(
                    f"classify-inputs: option inputs names {key!r}, but the step has no such "
                    f"input; it has {', '.join(_user_names(inputs)) or 'none'}"
                )
            if role not in INPUT_ROLES:
                raise PassError(
                    f"classify-inputs: option inputs gives {key!r} the role {role!r}; "
                    f"expected one of {', '.join(INPUT_ROLES)}"
                )
            for node in named:
                node.meta["kind"] = INPUT_ROLES[role]
            chosen.update(named)
        free: list[fx.Node] = []
        for node in inputs:
            if node not in chosen:
                node.meta["kind"] = _obvious_kind(node)
                if node.meta["kind"] is None:
                    free.append(node)
        for kind, find in (
            (InputKind.TIMESTEP, _find_timesteps),
            (InputKind.LATENTS, _find_latents),
        ):
            given = [n for n in inputs if kind_of(n) is kind]
            for node in find(free, given, graph.graph):
                node.meta["kind"] = kind
                free.remove(node)
        if not any(kind_of(n) is InputKind.TIMESTEP for n in inputs):
            numbers = [n for n in inputs if _is_number_argument(n) and n not in chosen]
            if len(numbers) == 1:
                numbers[0].meta["kind"] = InputKind.TIMESTEP
        for node in free:
            node.meta["kind"] = InputKind.LATENTS if _follows(node) else InputKind.CONDITION
        counts = {str(k): sum(kind_of(n) is k for n in inputs) for k in InputKind}
        facts = graph.facts | self.ensures
        stats = {k: v for k, v in counts.items() if v}
        return PassResult(graph.with_(facts=facts), True, dict(stats))


def _user_names(inputs: list[fx.Node]) -> list[str]:
    return [source_name(n) for n in inputs if _obvious_kind(n) is not InputKind.PARAMETER]


def _follows(node: fx.Node) -> bool:
    """Whether it is named as what a side network makes of the latents."""
    named = any(part in argument_name(node) for part in FOLLOWING)
    return named and _is_floating(node) and _rank(node) >= 2


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
    return None if _named_time(node) else InputKind.SCALAR


def _is_number_argument(node: fx.Node) -> bool:
    """Whether it is a number that the caller gave, which is no size and not named otherwise."""
    given = kind_of(node) is InputKind.SCALAR and source_name(node) == argument_name(node)
    return given and not re.fullmatch(r"s\d+", node.name) and not _named_other(node)


def _find_timesteps(free: list[fx.Node], given: list[fx.Node], _: fx.Graph) -> list[fx.Node]:
    """The inputs that tell the time besides those given; empty if that is not plain."""
    named = [n for n in free if _named_time(n) and _may_be_time(n)]
    if named:  # several where a model takes a timestep and its sigma: all move on together
        return named
    if given:
        return []
    flat = [n for n in free if _per_sample(n) and not _is_constant(n) and not _named_other(n)]
    floating = [n for n in flat if _is_floating(n)]
    # Of several vectors the floating one is the time: class labels and lengths are integers.
    for candidates in (floating, flat):
        if len(candidates) == 1:
            return candidates
    return []


def _named_time(node: fx.Node) -> bool:
    name = argument_name(node)
    return name in TIMESTEP_NAMES or name.endswith(("_timestep", "_timesteps", "_sigma", "_sigmas"))


def _named_other(node: fx.Node) -> bool:
    return any(part in argument_name(node) for part in NO_TIME)


def _may_be_time(node: fx.Node) -> bool:
    """One value, one for each sample (of any rank), or one for each token: not an embedding."""
    return _rank(node) <= 2 or _per_sample(node)


def _per_sample(node: fx.Node) -> bool:
    return _numel(node) == (_shape(node) or (1,))[0] > 0


def _find_latents(free: list[fx.Node], given: list[fx.Node], graph: fx.Graph) -> list[fx.Node]:
    """The input with a latents' name, of several the one that is most like an output.

    Besides latents that were given, only one that has the name and is as much like an output:
    a caller who names the last prediction need not name the latents proper.
    """
    tensors = [n for n in free if _rank(n) >= 2 and _is_floating(n)]
    outs = [value_of(n) for n in flat_nodes(output_node(graph).args)]
    shapes = [shape_of(v) for v in outs if isinstance(v, Tensor)]

    def likeness(node: fx.Node) -> int:
        """2: an output's shape; 1: in one size another, as where conditions join the channels."""
        own, best = _shape(node), 0
        for shape in shapes:
            if len(shape) == len(own):
                differing = sum(a != b for a, b in zip(own, shape, strict=True))
                best = max(best, 2 - differing)
        return best

    named = [n for n in tensors if argument_name(n) in LATENT_NAMES]
    # The first of equals; where nothing is like an output, the largest.
    found = max(
        named if named or given else tensors,
        key=lambda n: (likeness(n), 0 if named or likeness(n) else _numel(n)),
        default=None,
    )
    if found is None or likeness(found) < max(map(likeness, given), default=0):
        return []
    elements = _one_argument(found, free)
    # Arguments of a wrapper's `*inputs` look like a list, too; of latents each has its output.
    alike = sum(len(shape) == _rank(found) for shape in shapes)
    return elements if len(elements) <= max(alike, 1) else [found]


def _one_argument(node: fx.Node, among: list[fx.Node]) -> list[fx.Node]:
    """The node, and where it is an element of a list, the other elements."""
    name = source_name(node)
    stem = name.removesuffix(f".{name.rsplit('.', 1)[-1]}") if name[-1:].isdigit() else name
    if stem == name:
        return [node]
    return [n for n in among if re.fullmatch(rf"{re.escape(stem)}\.\d+", source_name(n))]


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
