"""What takes part in a comparison: something with knobs that samples with fewer MACs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from .arena import Arena
from .workload import Batch

Knobs = dict[str, Any]
Kind = Literal["ditcache", "baseline", "library"]


class DoesNotApply(Exception):
    """The contestant cannot run this model; the message is its own error."""


@dataclass(frozen=True)
class Family:
    """Settings that differ in one knob, along which the MACs fall.

    `values` of a discrete knob stand in the order of falling MACs; `span` is the range of a
    continuous knob whose MACs fall from its first end to its second. With neither, the family is
    the one setting `fixed`.
    """

    fixed: Knobs
    knob: str = ""
    values: Sequence[Any] = ()
    span: tuple[float, float] | None = None

    def at(self, value: Any) -> Knobs:
        """All knobs, with this value of the free one."""
        return self.fixed | ({self.knob: value} if self.knob else {})


class Contestant(ABC):
    """A method with its knobs, on one arena.

    `kind` is "ditcache" for the method of this project, "baseline" for others that it expresses,
    "library" for other people's unmodified code. `note` is printed under the table.
    """

    kind: Kind
    note: ClassVar[str] = ""

    def __init__(self, name: str, arena: Arena) -> None:
        self.name = name
        self.arena = arena

    def prepare(self) -> None:  # noqa: B027
        """Calibrate, once, on the arena's calibration samples; raises DoesNotApply."""

    def forget(self, budget: float) -> None:  # noqa: B027
        """Drop what was made for this budget, so that it is made anew."""

    @abstractmethod
    def families(self, budget: float) -> list[Family]:
        """Settings worth trying to reach this MACs reduction."""

    @abstractmethod
    def sample(self, knobs: Knobs, batch: Batch) -> Tensor:
        """Final latents of one batch with these knobs; raises DoesNotApply."""

    def about(self, knobs: Knobs) -> dict[str, Any]:
        """What else is to be known of a setting and of the generations run with it."""
        return {}
