"""What a plan means, written by hand; and work as seen from outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from ditcache import Plan
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten


class Products(TorchDispatchMode):
    """Counts the matrix products, convolutions and attentions that run."""

    KINDS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "attention")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Else Dynamo would run the model uncompiled for as long as the mode is on."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name in self.KINDS or "attention" in name
        return func(*args, **(kwargs or {}))


def _forecast(row: Sequence[float], values: Sequence[Any]) -> Any:
    """One leaf of the output from its last values; what is no tensor stays as it was."""
    if not isinstance(values[0], Tensor):
        return values[0]
    terms = [w * y.float() for w, y in zip(row, values, strict=False) if w != 0.0]
    return torch.stack(terms).sum(0).to(values[0].dtype)


@contextmanager
def planned_by_hand(model: nn.Module, plan: Plan, branches: int) -> Iterator[nn.Module]:
    """The uncompiled model that computes the plan's steps and sums its last outputs at the others.

    Branches take turns: call i of the model is step i // branches of branch i % branches.
    """
    schedule, forward = plan.regions[0], model.forward
    history: list[list[list[Any]]] = [[] for _ in range(branches)]
    calls = 0

    def by_hand(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        step, past = calls // branches, history[calls % branches]
        calls += 1
        if step in schedule.computed:
            output = forward(*args, **kwargs)
            leaves, by_hand.spec = tree_flatten(output)
            past.insert(0, leaves)
            return output
        row = schedule.weights[step]
        leaves = [_forecast(row, values) for values in zip(*past, strict=True)]
        return tree_unflatten(leaves, by_hand.spec)

    model.forward = by_hand
    try:
        yield model
    finally:
        del model.forward


def same(one: Any, two: Any) -> None:
    """Fails unless both are equal bit for bit."""
    torch.testing.assert_close(one, two, rtol=0, atol=0)
