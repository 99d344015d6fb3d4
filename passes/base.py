"""The pass contract: what a pass is, what it gets, what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from .ir import StepGraph
from .plan_format import Plan
from .profile import Profile

Stats = dict[str, int | float | str]


@dataclass
class PassContext:
    """What passes may consult besides the graph.

    `roles` is the caller's word on what an input is (by source name); `plan` the schedule to
    insert; `profile` the measured drift; `record` asks for the live-outs of these region kinds
    as extra outputs; `slot_budget` bounds the cache storage in bytes (None: no bound);
    `slot_format` is how slots are stored (a name of `kernels.formats.FORMATS`, None as they are).
    `on_device` asks for decisions that the host need not wait for, `guarded` for steps that a
    device computes after all where a generation has left its plan.
    """

    roles: dict[str, str] = field(default_factory=dict[str, str])
    plan: Plan | None = None
    profile: Profile | None = None
    record: tuple[str, ...] = ()
    slot_budget: int | None = None
    slot_format: str | None = None
    on_device: bool = False
    guarded: bool = False


@dataclass(frozen=True)
class PassResult:
    """A pass's output graph, whether it changed anything, and figures for --pass-statistics."""

    graph: StepGraph
    modified: bool
    stats: Stats = field(default_factory=dict[str, int | float | str])


class PassError(ValueError):
    """A pass cannot do its work on this graph; the message says what is unsupported and why."""


@runtime_checkable
class Pass(Protocol):
    """One graph-to-graph step: a frozen dataclass whose options are its fields."""

    name: ClassVar[str]
    requires: ClassVar[frozenset[str]]
    ensures: ClassVar[frozenset[str]]

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Transform `graph`; the input graph stays as it was."""
        ...
