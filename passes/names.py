"""Where a node comes from, in the words of the model: module paths and input names."""

from __future__ import annotations

import re

from torch import fx


def module_path(node: fx.Node) -> str:
    """Dotted path of the innermost module that the node came from, "" for the root."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = next(reversed(stack.values()))[0]
    return clean_path(path, of_module=True)


def clean_path(source: str, *, of_module: bool = False) -> str:
    """Dynamo's source text of a module as a plain dotted path.

    `L['self']._modules['blocks']._modules['0'].attn` becomes `blocks.0.attn`. What a module calls
    itself is up to its author, so with `of_module` the first name goes whatever it is.
    """
    if (wrapped := re.fullmatch(r"___from_numpy\((.*)\)", source)) is not None:
        source = wrapped[1]
    scoped = source.startswith(("L[", "G["))
    for noise in ("__dict__", "_modules", "_parameters", "_buffers"):
        source = source.replace(noise, "")
    text = source.replace("['", ".").replace("']", ".").replace("[", ".").replace("]", ".")
    parts = [p for p in text.split(".") if p]
    if parts and parts[0] in ("L", "G"):
        parts = parts[1:]
    if (of_module and scoped) or (
        parts and parts[0] in ("self", "fn", "mod", "model", "args", "kwargs", "_orig_mod")
    ):
        parts = parts[1:]
    return ".".join(p for p in parts if p != "_orig_mod")


def source_name(node: fx.Node) -> str:
    """Where a placeholder comes from, as a dotted path: `hidden_states`, `blocks.0.attn.weight`."""
    if "source" in node.meta:
        return str(node.meta["source"])
    source = getattr(node, "_dynamo_source", None)
    name = getattr(source, "name", None)
    # A method in torch 2.11, a property since.
    text = str(node.target if name is None else name() if callable(name) else name)
    state = "_dynamo_static_input_type" in (node.meta.get("tensor_dict") or {})
    path = clean_path(text, of_module=state)
    return path or node.name


def argument_name(node: fx.Node) -> str:
    """The argument that a placeholder came with: `x` of `x.0`, `time_ids` of `added.time_ids`."""
    parts = source_name(node).split(".")
    while len(parts) > 1 and parts[-1].isdigit():
        parts.pop()
    return parts[-1]
