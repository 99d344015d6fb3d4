"""One model, all ways, in a process of its own; each result is written as soon as it exists."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch

from ..ledger import Ledger
from .choice import Choice
from .loop import Loop, load
from .measured import measured

DID_NOT_END = "did not end: killed, or out of time"
TRIES = 2
"""Times that a way is begun which does not end."""


class Exit(IntEnum):
    """How a worker ends, as its exit status; any other one is a failure before the first way."""

    DONE = 0
    OUT_OF_TIME = 3
    BROKEN = 4  # an error of the device, after which nothing runs in this process


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
        Case("wan2.1-14b", 7, frames=81, height=480, width=832),
    )
}


def run(  # noqa: PLR0917
    name: str,
    make: Callable[[], Loop],
    choice: Choice,
    ledger: Ledger,
    rounds: int = 3,
    until: float = float("inf"),
) -> Exit:
    """Measure what the ledger lacks of one model, until `until` (`time.time()`).

    Each way is in the ledger before it begins, so that one that takes the process down is known.
    """
    begun = {r["way"]: r.get("tries") for r in ledger.records.values() if r.get("model") == name}
    wanted = [w for w in choice.ways() if w.name not in begun or (begun[w.name] or TRIES) < TRIES]
    if not wanted:
        return Exit.DONE
    loop = make()
    for way in wanted:
        if time.time() > until:
            return Exit.OUT_OF_TIME
        key, row = f"{name} | {way.name}", {"model": name, "way": way.name}
        ledger.put(key, row | {"error": DID_NOT_END, "tries": (begun.get(way.name) or 0) + 1})
        ledger.put(key, row | measured(way, loop, rounds))
        if broken(loop):
            return Exit.BROKEN
    return Exit.DONE


def broken(loop: Loop) -> bool:
    """Whether the device has failed for good, as after an access out of bounds."""
    if not loop.timesteps.is_cuda:
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
