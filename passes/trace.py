"""Trace a model's step for analysis, without running it through the runtime."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.exc import Unsupported

from .base import PassError
from .ir import StepGraph


def trace(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    name: str = "step",
    *,
    dynamic: bool | None = None,
) -> StepGraph:
    """The FX graph that Dynamo makes of one call, on real, fake or meta tensors.

    `dynamic` is torch.compile's. Nothing is lowered: the call runs eagerly (free on meta
    tensors). Raises PassError if the model does not trace into one graph, with the reason that
    Dynamo gives for the break.
    """
    captured: list[fx.GraphModule] = []

    def capture(module: fx.GraphModule, _: list[Any], **__: Any) -> Any:
        captured.append(module)
        return module.forward

    torch._dynamo.reset()
    try:
        with torch.no_grad():
            torch.compile(model, backend=capture, fullgraph=True, dynamic=dynamic)(
                *args, **(kwargs or {})
            )
    except Unsupported as broken:
        reason = str(broken).strip().splitlines()[0]
        raise PassError(f"trace: the model does not trace into one graph: {reason}") from broken
    finally:
        torch._dynamo.reset()
    if not captured:
        raise PassError(
            "trace: the call made no graph; does the model's forward run any tensor op?"
        )
    return StepGraph(name=name, module=captured[-1])
