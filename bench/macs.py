"""Multiply-accumulates counted from outside: one counter for every contestant, ours included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class MacCounter(TorchDispatchMode):
    """Counts the MACs of every matrix product, convolution and attention that really runs.

    The figures are those of `torch.utils.flop_counter` halved (a MAC is a multiplication and an
    addition), plus the CPU's fused attention, which its table lacks. What is hidden in a kernel
    that Inductor made is not seen: count with eager models, or parts compiled by
    `inner="eager"`. Code that torch.compile has made runs as usual inside this mode.
    """

    _innermost: ClassVar[MacCounter | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def running(cls) -> int:
        """MACs so far of the counter that is counting now; 0 if none is."""
        return cls._innermost.total if cls._innermost is not None else 0

    def __enter__(self) -> Self:
        self._outer, MacCounter._innermost = MacCounter._innermost, self
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        MacCounter._innermost = self._outer
        super().__exit__(*raised)

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let Dynamo run its compiled code; otherwise it would step aside under any mode."""
        return True

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet is _CPU_ATTENTION:
            query, key, value = (tensor.shape for tensor in args[:3])
            self.total += sdpa_flop_count(query, key, value) // 2
        elif (count := flop_registry.get(packet)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out) // 2
        return out


def counted(run: Callable[[], Any]) -> tuple[Any, int]:
    """Result and MACs of a call."""
    with MacCounter() as counter:
        result = run()
    return result, counter.total
