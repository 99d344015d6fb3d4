"""Slots at run time: a ring of the last K computed values of one live-out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.clock import Dial, Grid, grid_on
from ..kernels.formats import Format, Packed
from ..kernels.probe import Verdict, verdict_on
from ..kernels.write import write
from ..passes.plan_format import Plan
from .late_reads import to_device
from .offload import Offload, Offloaded


class Ring:
    """The last K values written, in one buffer [K, *shape] whose address never changes.

    Entries are overwritten in turn rather than moved, so a forecast's weights are permuted to the
    ring's physical order instead (`physical`). With a storage format the buffer is packed: what is
    pushed is packed in one pass, what is read is unpacked by who reads it. With `offload` the
    buffer may lie on the host, and is fetched to be read.
    """

    def __init__(
        self,
        value: Tensor,
        history: int,
        kind: Format | None = None,
        offload: Offload | None = None,
    ) -> None:
        self.buffer: Tensor | Packed | Offloaded
        stage = None if offload is None else offload.stage_for(value, history, kind)
        if stage is not None:
            self.buffer = Offloaded(value, history, kind, stage)
        elif kind is None:
            shape = (history, *value.shape)
            self.buffer = torch.zeros(shape, dtype=value.dtype, device=value.device)
        else:
            self.buffer = Packed.empty(kind, history, value)
        self.kind = kind
        self.history = history
        self.steps: list[int] = []  # step of each entry, newest first
        self._newest = -1

    def fits(self, value: Tensor) -> bool:
        """Whether a value has the shape, dtype and device of this ring's entries."""
        held = self.buffer
        return (
            held.shape[1:] == value.shape
            and held.dtype == value.dtype
            and held.device == value.device
        )

    def push(self, step: int, value: Tensor) -> None:
        """Write the value of `step` over the oldest entry."""
        self._newest = (self._newest + 1) % self.history
        if isinstance(self.buffer, Offloaded):
            self.buffer.put(self._newest, value)
        elif isinstance(self.buffer, Packed):
            write(value, self.buffer, self._newest)
        else:
            self.buffer[self._newest].copy_(value)
        self.steps = [step, *self.steps[: self.history - 1]]

    def entry(self, k: int) -> Tensor:
        """The k-th newest entry, in the type that was pushed."""
        index = (self._newest - k) % self.history
        return self.buffer[index] if isinstance(self.buffer, Tensor) else self.buffer.entry(index)

    def read(self) -> Tensor | Packed:
        """The buffer on the device, for a kernel that is queued before any other ring is read."""
        return self.buffer.fetch() if isinstance(self.buffer, Offloaded) else self.buffer

    @property
    def rotation(self) -> int:
        """Physical index of the newest entry."""
        return self._newest

    def physical(self, row: Sequence[float]) -> list[float]:
        """Weights given newest first, in the buffer's physical order; unwritten entries get 0."""
        return physical(row[: len(self.steps)], self._newest, self.history)

    def clear(self) -> None:
        """Forget the entries; the storage stays."""
        self.steps = []
        self._newest = -1

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer where the values are, as it is stored; 0 if it lies on the host."""
        return 0 if isinstance(self.buffer, Offloaded) else self.buffer.nbytes

    @property
    def host_bytes(self) -> int:
        """Bytes of a buffer that lies on the host in place of a device."""
        return self.buffer.nbytes if isinstance(self.buffer, Offloaded) else 0


def physical(row: Sequence[float], newest: int, history: int) -> list[float]:
    """Weights given newest first, in the order of a ring whose newest entry is at `newest`."""
    weights = [0.0] * history
    for k, weight in enumerate(row[:history]):  # a longer row's zeros would wrap
        weights[(newest - k) % history] = weight
    return weights


class SlotSet:
    """The rings of one (generation, branch), by slot name."""

    def __init__(self) -> None:
        self.rings: dict[str, Ring] = {}
        self._leads: dict[str, str] = {}
        self.verdict: Verdict | None = None  # of decisions that a device makes
        self._clock: tuple[Plan, Grid, Dial] | None = None
        self._ticks = False  # whether the clock was set in this generation

    def of(self, schedule: str) -> Ring | None:
        """A ring of that schedule; those that share one are written at the same steps."""
        return self.rings.get(self._leads.get(schedule, schedule))

    def verdict_on(self, device: torch.device) -> Verdict:
        """What probes of this branch have said so far, where they say it."""
        if self.verdict is None or self.verdict.flag.device != device:
            self.verdict = verdict_on(device)
        return self.verdict

    def clock(self, plan: Plan, step: int, device: torch.device) -> tuple[Grid, Dial]:
        """The device's clock; begins at `step` of the plan. Setting it waits for no device."""
        known = self._clock
        if known is None or known[0] is not plan or known[2].state.device != device:
            host = grid_on("cpu", plan.timesteps)
            parts = (host.timesteps, host.within)
            dial = Dial(torch.empty(4, dtype=torch.int32, device=device))
            known = self._clock = (plan, Grid(*(to_device(t, device) for t in parts)), dial)
            self._ticks = False
        if not self._ticks:
            known[2].clear(step)
            self._ticks = True
        return known[1:]

    def push(
        self,
        name: str,
        step: int,
        value: Tensor,
        history: int,
        schedule: str | None = None,
        *,
        kind: Format | None = None,
        offload: Offload | None = None,
    ) -> None:
        """Write into a slot, making it on first use or where shape, dtype, K or format changed.

        Steps are those of the generation. With another K what is held moves along: a plan may be
        found to be the wrong one of two only after some steps.
        """
        ring = self.rings.get(name)
        if schedule is not None:
            self._leads.setdefault(schedule, name)
        fits = ring is not None and ring.fits(value)
        if ring is None or not fits or (ring.history, ring.kind) != (history, kind):
            made = self.rings[name] = Ring(value, history, kind, offload)
            if ring is not None and fits:
                for k in reversed(range(len(ring.steps))):
                    made.push(ring.steps[k], ring.entry(k))
            ring = made
        ring.push(step, value)

    def clear(self) -> None:
        """Forget all values, keep the storage."""
        self._ticks = False
        for ring in self.rings.values():
            ring.clear()
        if self.verdict is not None:
            self.verdict.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of all rings."""
        return sum(r.nbytes for r in self.rings.values())
