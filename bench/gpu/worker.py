"""One model, all ways, in a process of its own; each result is written as soon as it exists."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..ledger import Ledger
from .loop import Loop, load
from .ways import Choice, measured


@dataclass(frozen=True)
class Case:
    """A model, and how long its loop is; sizes are those of the pipeline unless given."""

    model: str
    steps: int
    top: float = 1000.0  # the timestep of pure noise
    frames: int | None = None
    height: int | None = None
    width: int | None = None

    def load(self, device: torch.device) -> Loop:
        size = {"frames": self.frames, "height": self.height, "width": self.width}
        return load(self.model, self.steps, self.top, device, size)


# In order of interest against time: the command starts none that it has no time for.
CASES = {
    case.model: case
    for case in (
        Case("dit-xl-2", 20),
        Case("flux-dev", 10, top=1.0),
        Case("sd3.5-large", 10),
        Case("wan2.1-1.3b", 10, frames=81, height=480, width=832),
        Case("svd-xt", 10),
        Case("wan2.1-14b", 6, frames=81, height=480, width=832),
    )
}


def run(  # noqa: PLR0917
    name: str,
    make: Callable[[], Loop],
    choice: Choice,
    ledger: Ledger,
    rounds: int = 3,
    until: float = float("inf"),
) -> bool:
    """Measure what the ledger lacks of one model; False if time (`time.time()`) ran out."""
    wanted = [way for way in choice.ways() if f"{name} | {way.name}" not in ledger]
    if not wanted:
        return True
    loop = make()
    for way in wanted:
        if time.time() > until:
            return False
        found = measured(way, loop, rounds)
        ledger.put(f"{name} | {way.name}", {"model": name, "way": way.name, **found})
    return True
