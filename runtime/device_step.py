"""A step whose decision the host does not wait for: head, decision, body under it, tail, in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.probe import Verdict, verdict_reference
from ..passes.policies import Limit
from .capture import InputUse
from .cuda_graphs import Captured, Graphs
from .executable import Executable, Ref
from .late_reads import to_device

NO_NODES = (
    "conditional nodes in CUDA graphs need torch 2.12 or later, this is {}: each decision is made "
    "on the host, which waits for the device"
)


class DeviceStep:
    """Runs the parts that lower-cond made of a step, as one callable that can be captured.

    The body refreshes the slots in place and the tail reads them, whether it ran or not. Captured,
    the body is a conditional node; otherwise the flag is read and the host branches.
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
        found = {
            ref: use
            for part in (head, body, tail)
            for ref, use in zip(part.inputs, part.uses, strict=True)
            if ref.source != "carried"
        }
        self.inputs = tuple(found)
        uses = (*found.values(), InputUse.KEPT, InputUse.SLOT, InputUse.SLOT)
        self._call: Callable[..., Any] = self._run
        if graphs is not None:
            self._call = Captured(self._run, uses, "a step decided on the device", graphs)

    def __call__(self, values: Sequence[Any], verdict: Verdict) -> tuple[Any, dict[str, Tensor]]:
        """Run the step on the values of `inputs`; gives its outputs and what is to be written.

        `verdict` holds the flag of the decision afterwards, 1 where the body ran.
        """
        device = verdict.flag.device
        if device not in self._limits:
            self._limits[device] = to_device(torch.tensor([self._limit], device="cpu"), device)
        outputs, writes = self._call(*values, self._limits[device], verdict.flag, verdict.running)
        return outputs, dict(zip(self.tail.variant.writes, writes, strict=True))

    def _run(self, *values: Any) -> Any:
        *given, limit, flag, running = values
        env = dict(zip(self.inputs, given, strict=True))
        (figures,), kept = self.head.plain(*(env[ref] for ref in self.head.inputs))
        names = self.head.variant.carried
        env |= {Ref("carried", name=n): v for n, v in zip(names, kept, strict=True)}
        verdict = Verdict(flag, running)
        verdict_reference(figures, limit, verdict, accumulate=self._accumulate, sticky=False)

        def refreshed() -> dict[str, Tensor]:
            _, made = self.body.plain(*(env[ref] for ref in self.body.inputs))
            return dict(zip(self.body.variant.writes, made, strict=True))

        rings = {ref.name: env[ref] for ref in self.inputs if ref.source == "slot"}
        refresh(flag, refreshed, rings)
        return self.tail.plain(*(env[ref] for ref in self.tail.inputs))


def refresh(
    flag: Tensor, values: Callable[[], Mapping[str, Tensor]], rings: Mapping[str, Tensor]
) -> None:
    """Where `flag`, i32[1], is set: compute values and write them over the rings [1, *shape].

    Under capture a conditional node. On a device without, the values are computed in either case:
    it is the call before the capture, in which every kernel has to be loaded.
    """
    if flag.is_cuda and torch.cuda.is_current_stream_capturing():
        graph = _capturing()
        graph.begin_capture_to_if_node(flag.bool().reshape(()))
        try:
            _write(values(), rings)
        finally:
            graph.end_capture_to_conditional_node()
        return
    made = values() if flag.is_cuda else None
    if flag.item():
        _write(values() if made is None else made, rings)


def _write(values: Mapping[str, Tensor], rings: Mapping[str, Tensor]) -> None:
    for slot, value in values.items():
        rings[slot][0].copy_(value)


def _capturing() -> Any:
    kind: Any = torch.cuda.CUDAGraph
    if not hasattr(kind, "begin_capture_to_if_node"):
        raise RuntimeError(NO_NODES.format(torch.__version__))
    return kind.get_currently_capturing_graph()
