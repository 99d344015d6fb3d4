"""What a captured graph is made of: the API that it needs, its inputs, what comes out of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from .seen import version_of

warming: ContextVar[bool] = ContextVar("ditcache_warming", default=False)
"""Whether what runs will be captured next: nothing can be loaded or tuned in a capture."""


@contextmanager
def rehearsing() -> Generator[None]:
    """Around a run that precedes its capture."""
    token = warming.set(True)
    try:
        yield
    finally:
        warming.reset(token)


class InputUse(StrEnum):
    """How a graph gets one of its inputs."""

    WEIGHT = "weight"  # by its address; a weight that moved makes a new capture
    SLOT = "slot"  # by its address; there is a capture for each
    KEPT = "kept"  # copied in, unless it is the tensor of the call before, unchanged
    VALUE = "value"  # copied in


class Graph(Protocol):
    """A captured CUDA graph."""

    def replay(self) -> None:
        """Queue the captured work on the current stream."""
        ...

    def reset(self) -> None:
        """Free it."""
        ...


class GraphApi(Protocol):
    """What is needed of CUDA."""

    def capture(self, pool: object, run: Callable[[], Any]) -> tuple[Graph, Any]:
        """Capture what `run` queues, with its memory from `pool`; gives what `run` gives.

        Raises what `run` raises, with the last op named in a note.
        """
        ...

    def pool(self) -> object:
        """A new pool of memory, to be shared by captures."""
        ...

    def on(self, device: torch.device) -> AbstractContextManager[Any]:
        """Make `device` the current one."""
        ...

    def stream(self) -> Hashable:
        """The current stream."""
        ...

    def follow(self, before: Any) -> None:
        """Let the current stream wait for what is queued on `before`."""
        ...

    def lend(self, memory: Sequence[Tensor]) -> None:
        """Let memory of another stream be used on the current one until its work is done."""
        ...

    def held(self) -> int:
        """Bytes that the allocator holds on the current device."""
        ...

    def release(self) -> None:
        """Give back memory that is not in use."""
        ...


@dataclass
class Input:
    """A static input buffer: `whole` is what the graph reads, `core` what has to be written.

    They differ where the input is expanded: of its repeated entries one is written.
    """

    core: Tensor
    whole: Tensor
    source: weakref.ref[Tensor] | None = None
    state: tuple[int, int] = (0, -1)  # where what was copied last lay, and its version then

    @classmethod
    def like(cls, value: Tensor) -> Input:
        """A buffer in the layout of `value`."""
        shape = _core(value).shape
        core = torch.empty_strided(shape, value.stride(), dtype=value.dtype, device=value.device)
        return cls(core, core.expand(value.shape))

    def take(self, value: Tensor, *, kept: bool) -> None:
        """Copy `value` in; where inputs are `kept`, only if it is not what was copied last."""
        state = value.data_ptr(), version_of(value)
        same = kept and self.source is not None and self.source() is value
        if same and state == self.state and not value.is_inference():
            return
        self.core.copy_(_core(value))
        self.source, self.state = weakref.ref(value), state


Inputs = dict[int, Input]
"""By position; the others are read where they lie."""


def given(args: Sequence[Any], inputs: Inputs) -> list[Any]:
    """What a graph reads in place of `args`."""
    return [inputs[i].whole if i in inputs else v for i, v in enumerate(args)]


@dataclass
class Capture:
    """One captured graph with the memory that it reads and writes."""

    graph: Graph
    inputs: Inputs
    weights: tuple[int, ...]  # addresses
    outputs: Any
    nbytes: int
    device: torch.device
    streams: set[Hashable]  # on which it may be replayed


def own(value: Any, done: dict[int, Tensor]) -> Any:
    """Copies of all tensors in a nested result; what occurs twice is copied once."""
    if isinstance(value, Tensor):
        if id(value) not in done:
            done[id(value)] = value.clone()
        return done[id(value)]
    if isinstance(value, (tuple, list)):
        return type(value)(own(v, done) for v in value)
    return value


def _core(value: Tensor) -> Tensor:
    """One of each set of repeated entries: expanded dimensions cut to one."""
    for dim, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
        if stride == 0 and size > 1:
            value = value.narrow(dim, 0, 1)
    return value
