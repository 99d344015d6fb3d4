"""A step of a policy that decides by data, as one callable that can be captured.

Under capture what is decided about becomes a conditional node; otherwise the host reads the flag
and branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.probe import Verdict, decide
from ..passes.policies import Limit
from .branches import branch, whole
from .capture import InputUse
from .cuda_graphs import Captured, Graphs
from .executable import Executable, Ref
from .late_reads import to_device


class DeviceStep:
    """Runs the parts that lower-cond made of a step: head, decision, body under it, tail.

    The body refreshes the slots in place and the tail reads them, whether it ran or not.
    """

    def __init__(
        self,
        head: Executable,
        body: Executable,
        tail: Executable,
        limit: Limit,
        graphs: Graphs | None,
    ) -> None:
        self.head, self.body, self.tail = head, body, tail
        self._accumulate = limit.accumulate
        self._limit = limit.limit
        self._limits: dict[torch.device, Tensor] = {}
        found = _uses(head, body, tail)
        self.inputs = tuple(found)
        uses = (*found.values(), InputUse.KEPT, InputUse.SLOT, InputUse.SLOT)
        self._call = whole(self._run, uses, "a step decided on the device", graphs)

    def __call__(self, values: Sequence[Any], verdict: Verdict) -> tuple[Any, dict[str, Tensor]]:
        """Run the step on the values of `inputs`; gives its outputs and what is to be written.

        `verdict` holds the flag of the decision afterwards, 1 where the body ran.
        """
        device = verdict.flag.device
        if device not in self._limits:
            limit = torch.tensor([self._limit], dtype=torch.float32, device="cpu")
            self._limits[device] = to_device(limit, device)
        outputs, writes = self._call(*values, self._limits[device], verdict.flag, verdict.running)
        return outputs, dict(zip(self.tail.variant.writes, writes, strict=True))

    def _run(self, *values: Any) -> Any:
        *given, limit, flag, running = values
        env = dict(zip(self.inputs, given, strict=True))
        (figures,), kept = _part(self.head, self._call, env)
        names = self.head.variant.carried
        env |= {Ref("carried", name=n): v for n, v in zip(names, kept, strict=True)}
        decide(figures, limit, Verdict(flag, running), accumulate=self._accumulate)

        def made() -> dict[str, Tensor]:
            _, values = _part(self.body, self._call, env)
            return dict(zip(self.body.variant.writes, values, strict=True))

        def take(values: Mapping[str, Tensor]) -> None:
            for slot, value in values.items():
                env[Ref("slot", name=slot)][0].copy_(value)

        branch(flag, made, take, warm=_captured(self._call))
        return _part(self.tail, self._call, env)


def _captured(call: Callable[..., Any]) -> bool:
    return isinstance(call, Captured) and not call.given_up


def _part(part: Executable, call: Callable[..., Any], env: Mapping[Ref, Any]) -> Any:
    """Run a part of a step: inside the step's capture, or in one of its own."""
    run = part.plain if isinstance(call, Captured) else part.run
    return run(*(env[ref] for ref in part.inputs))


def _uses(*parts: Executable) -> dict[Ref, InputUse]:
    """The inputs of several parts, but for what one carries over to the next."""
    return {
        ref: use
        for part in parts
        for ref, use in zip(part.inputs, part.uses, strict=True)
        if ref.source != "carried"
    }
