"""What is known of one generation under way, and what is kept for its next steps."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..passes.plan_format import Plan
from .guidance_watch import GuidanceWatch
from .recorder import Recording
from .slots import SlotSet
from .track import Moment

if TYPE_CHECKING:
    from .judge import Judge


@dataclass(frozen=True)
class Sample:
    """Shape and dtype of what the denoiser gave; several live-outs count as one vector."""

    shape: tuple[int, ...]
    dtype: str

    def suits(self, plan: Plan) -> bool:
        """Whether the plan was made for outputs like this one, at whatever batch size."""
        if plan.shape is None:
            return True
        keep = 1 if len(self.shape) > 1 else 0
        same = self.shape[keep:] == tuple(plan.shape[keep:]) and len(self.shape) == len(plan.shape)
        return same and plan.dtype in (None, self.dtype)

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Beginning:
    """What the generations before it on the same track say about the one that begins."""

    clashes: int = 0  # how many in a row began because latents took turns, this one included
    after_one_step: bool = False


@dataclass
class GenerationState:
    """One generation under way. What changes together stands together."""

    serial: int
    began: Beginning = Beginning()
    seen: list[float] = field(default_factory=list[float])  # its timesteps so far

    # The plan that it follows: found at its first steps, given up where it does not suit.
    plan: Plan | None = None
    offset: int = 0  # plan step of the generation's first step; not 0 for image-to-image
    outran: Plan | None = None  # a plan behind whose grid's end it went on

    # What its computed steps leave behind, by guidance branch.
    slots: dict[str, SlotSet] = field(default_factory=dict[str, SlotSet])
    judges: dict[str, Judge] = field(default_factory=dict[str, "Judge"])  # of a plan with a rule

    # What its first two steps show.
    sample: Sample | None = None  # None until the first step has computed
    gave: tuple[weakref.ref[Tensor], int] | None = None  # its first output, and its version then
    guidance: GuidanceWatch = field(default_factory=GuidanceWatch)

    # Its recording, given up with the first forecast.
    recording: Recording | None = None
    measured: bool = False  # runs in full on purpose, to be recorded

    # How far its steps are to be trusted.
    confirmed: bool = False  # the steps that were foreseen before the first forecast
    alarmed: bool = False  # by the guard
    full: str | None = None  # why the rest of the generation is computed in full


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the model: the graph's inputs, and where in which generation it stands."""

    args: Sequence[Any]
    moment: Moment
    state: GenerationState
    slots: SlotSet
