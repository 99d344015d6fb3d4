"""A function that was compiled together with the sampler's step: its outputs are the next latents.

A forecast of latents from those before them would carry on their course without ever asking the
model, and the outputs would not show the error. So such a function is found out at the second step,
whose latents are then what the first one gave, and is computed in full.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .generation_state import GenerationState
    from .stats import Stats

STEPPED = "what was compiled takes the sampler's step itself"
WHAT_TO_DO = (
    "Its outputs are the next latents, and a forecast of those would leave the model out. Compile "
    "the model alone, or a function that gives its prediction."
)


def note(state: GenerationState, output: Any) -> None:
    """Remember what a generation's first step gave."""
    if isinstance(output, Tensor) and not output.is_inference():  # those count no writes
        state.gave = weakref.ref(output), output._version


def comes_back(state: GenerationState, latents: Any) -> bool:
    """Whether the second step's latents are what the first one gave, unchanged."""
    if state.gave is None or not isinstance(latents, Tensor):
        return False
    given, version = state.gave
    return given() is latents and latents._version == version


def give_up(state: GenerationState, stats: Stats) -> None:
    """Compute the rest of the generation in full, learn nothing from it, and say so once."""
    state.full = STEPPED
    if state.recording is not None:
        state.recording.broken = f"{STEPPED}. {WHAT_TO_DO}"
    stats.say(STEPPED, f"computing in full: {STEPPED}. {WHAT_TO_DO}")
