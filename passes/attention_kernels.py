"""Attention on a chosen kernel: what a model says with `torch.nn.attention.sdpa_kernel`.

In a trace the choice is a pair of calls that set a global state around the attention. Nothing
flows from them, so passes would drop them, move them or cut between them. `normalize` folds each
range into the attention ops inside, which then carry the choice as an argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from .effects import op_base


def scaled_dot_product_attention(
    *args: Any, backends: tuple[str, ...], set_priority: bool, **kwargs: Any
) -> Any:
    """The torch function of that name on one of `backends`, names of SDPBackend, in that order."""
    with sdpa_kernel([getattr(SDPBackend, name) for name in backends], set_priority):
        return functional.scaled_dot_product_attention(*args, **kwargs)


def multi_head_attention_forward(
    *args: Any, backends: tuple[str, ...], set_priority: bool, **kwargs: Any
) -> Any:
    """The torch function of that name on one of `backends`, names of SDPBackend, in that order."""
    with sdpa_kernel([getattr(SDPBackend, name) for name in backends], set_priority):
        return functional.multi_head_attention_forward(*args, **kwargs)


_ON_A_KERNEL = {f.__name__: f for f in (scaled_dot_product_attention, multi_head_attention_forward)}


class KernelChoices:
    """Which kernel choice each attention op of a trace stands under.

    A range is opened and closed by the same call, which sets what it is given. The last one of a
    whole trace closes the outermost range: it gives the state that the model found.
    """

    def __init__(self, nodes: Iterable[fx.Node]) -> None:
        self._choices: dict[fx.Node, dict[str, Any]] = {}
        self._marks: set[fx.Node] = set()
        nodes = list(nodes)
        marks = [n for n in nodes if n.target is torch.nn.attention._sdpa_kernel]
        if not marks:
            return
        state = [_choice(marks[-1])]
        for node in nodes:
            if node.target is torch.nn.attention._sdpa_kernel:
                self._marks.add(node)
                chosen = _choice(node)
                if len(state) > 1 and set(chosen["backends"]) == set(state[-2]["backends"]):
                    state.pop()
                else:
                    state.append(chosen)
            elif node.target is torch.nn.attention._backend_from_string:
                self._marks.add(node)
            elif len(state) > 1 and node.op == "call_function" and op_base(node) in _ON_A_KERNEL:
                self._choices[node] = state[-1]

    def marks(self, node: fx.Node) -> bool:
        """Whether the node is part of setting the state: it is not needed any more."""
        return node in self._marks

    def chosen(self, node: fx.Node) -> tuple[Any, dict[str, Any]]:
        """The op that runs the node's attention on its kernel, and its arguments by name."""
        choice = self._choices.get(node)
        if choice is None:
            return node.target, node.kwargs
        return _ON_A_KERNEL[op_base(node)], {**node.kwargs, **choice}


def _choice(mark: fx.Node) -> dict[str, Any]:
    backends: Any = mark.args[0]
    return {
        "backends": tuple(b.args[0] if isinstance(b, fx.Node) else b.name for b in backends),
        "set_priority": bool(mark.args[1]) if len(mark.args) > 1 else False,
    }
