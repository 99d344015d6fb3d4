"""Where calls of a model stand: the moment of one, and the track of those before it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .seen import Conditions, Kind, Latents, Seen

Order = tuple[tuple[str, str], ...]
"""The calls of a step: the name under which each came, and the branch that it was."""


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Where a call must stand, and what of it is yet to be read.

    `time` is the timestep as the device holds it, None if it is known; `unread` are conditions of
    which only the entries tell that they are unchanged, as they were seen and as they are.
    """

    branch: str
    step: int
    timestep: float
    time: Tensor | None
    unread: tuple[tuple[Seen, Tensor], ...]


@dataclass(frozen=True)
class Moment:
    """Where one call stands.

    `track` is a thread or an explicit generation, `serial` counts the generations in it, `step` the
    denoising steps from 0; `timestep` is as the model saw it. `cause` says why a generation began
    with this call, "" if none did; `changed` which condition changed, where one did.
    """

    track: Hashable
    serial: int
    branch: str
    step: int
    timestep: float
    cause: str = ""
    changed: str = ""

    @property
    def starts(self) -> bool:
        """Whether this is the first call of its generation."""
        return bool(self.cause)


@dataclass
class Track:
    """One stream of generations, and what the last calls looked like."""

    serial: int = -1
    step: int = -1
    timestep: float | None = None
    direction: int = 0
    called: dict[str, Seen] = field(default_factory=dict[str, Seen])  # in this step
    conditions: dict[str, Conditions] = field(default_factory=dict[str, Conditions])
    latents: dict[str, Latents] = field(default_factory=dict[str, Latents])  # latest, by branch
    outputs: dict[str, tuple[Tensor, ...]] = field(default_factory=dict[str, "tuple[Tensor, ...]"])
    kinds: dict[str, list[Kind]] = field(default_factory=dict[str, "list[Kind]"])  # of latents
    grid: tuple[float, ...] = ()  # of this generation from its first step on, () if unknown
    order: Order = ()  # the calls of this step so far
    before: Order = ()  # those of a whole step
    lost: bool = False  # a step was foreseen that was another

    def begin(self) -> None:
        """A new generation: nothing is known of it yet."""
        self.serial += 1
        self.step, self.timestep, self.direction = -1, None, 0
        self.grid, self.order, self.lost = (), (), False
        self.forget_calls()

    def forget_calls(self) -> None:
        """Forget what the calls looked like."""
        self.called, self.conditions, self.latents, self.outputs, self.kinds = {}, {}, {}, {}, {}


@dataclass(frozen=True, slots=True)
class Sighting:
    """A call that the clock looked at and has not entered yet."""

    moment: Moment
    track: Track
    latents: Any
    glimpse: Latents
    conditions: Sequence[Any]
    names: tuple[str, ...]
    base: str  # the branch by its name alone
    foreseen: Foreseen | None = None  # what is yet to be seen of it
