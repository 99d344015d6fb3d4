"""Every contestant at every MACs budget, on the same prompts and seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from . import metrics
from .arena import Arena
from .contestants import Contestant, DoesNotApply
from .judging import TO_REAL, judge
from .ledger import Ledger, Record
from .macs import counted
from .peers import PEERS
from .policies import POLICIES, SOLVERS, FewerSteps, Policy
from .tuning import Tuned, Tuner

UNCACHED, OTHER_SEEDS = "uncached", "uncached, other seeds"
IDLE = 1.02
"""A contestant whose MACs fall by less than this did nothing, whatever it was asked."""


def names() -> list[str]:
    """All contestants, ours first."""
    return [*POLICIES, *SOLVERS, *PEERS]


def make(name: str, arena: Arena) -> Contestant:
    """A contestant by its name; KeyError for another name."""
    if name in POLICIES:
        return Policy(name, arena)
    return (FewerSteps if name in SOLVERS else PEERS[name])(name, arena)


def cell_name(contestant: str, budget: float) -> str:
    """Name a cell."""
    return f"{contestant} {budget:g}x"


class Contest:
    """The cells of one arena; those that exist in the ledger are not measured again.

    `say` hears what is being done, `tick` is called after each cell.
    """

    def __init__(
        self,
        arena: Arena,
        out: Path,
        say: Callable[[str], None] = lambda _: None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.arena = arena
        self.cells = Ledger(out / "cells.jsonl", arena.key)
        self.trials = Ledger(out / "trials.jsonl", arena.tuning_key)
        self.say, self.tick = say, tick
        self.tuner = Tuner(arena, self.trials, say)
        self._ready: dict[str, Contestant | DoesNotApply] = {}

    def run(self, contestants: list[str], budgets: list[float], redo: bool = False) -> None:
        """Measure what is missing; with `redo`, the named contestants' cells again."""
        if UNCACHED not in self.cells:
            self.say("uncached samples")
            self.cells.put(UNCACHED, judge(self.arena, self.arena.first, None))
        for budget in budgets:
            for name in contestants:
                cell = cell_name(name, budget)
                if redo or cell not in self.cells:
                    self.cells.put(cell, self._cell(name, budget, redo))
                self.tick()
        # Last, because they cost as much as many cells and only tell the noise.
        if OTHER_SEEDS not in self.cells:
            self.say("uncached samples of other seeds")
            found = judge(self.arena, self.arena.other_seeds, None)
            apart = metrics.frechet_distance(
                self.arena.other_seeds.features, self.arena.first.features
            )
            self.cells.put(OTHER_SEEDS, found | {"frechet_between_seeds": round(apart, 4)})

    @property
    def noise(self) -> float:
        """How far changing the seeds alone moves the Fréchet distance to the real set.

        Infinite as long as the other seeds are not sampled, or without a real set.
        """
        known = [self.cells.records.get(n, {}).get("set", {}) for n in (UNCACHED, OTHER_SEEDS)]
        if not all(TO_REAL.key in found for found in known):
            return float("inf")
        first, second = (found[TO_REAL.key] for found in known)
        return abs(first - second)

    def _cell(self, name: str, budget: float, redo: bool) -> Record:
        about: Record = {"contestant": name, "budget": budget}
        try:
            contestant = self._contestant(name)
            about["kind"] = contestant.kind
            if redo:
                contestant.forget(budget)
            tuned = self.tuner.tune(contestant, budget)
            about |= _tuning(tuned)
            # A contestant that reaches no budget has one best setting for all of them.
            known = [c for c in self.cells.records.values() if _same(c, name, tuned)]
            if known and not redo:
                return {k: v for k, v in known[0].items() if k != "name"} | about
            return about | self._measure(contestant, tuned)
        except DoesNotApply as error:
            kind = "baseline" if name in SOLVERS else "library"
            return about | {"kind": kind, "does_not_apply": str(error)}

    def _measure(self, contestant: Contestant, tuned: Tuned) -> Record:
        """Sample the held-out set under the chosen setting and judge it."""
        arena = self.arena
        parts: list[torch.Tensor] = []
        macs, started = 0, time.perf_counter()
        for index, batch in enumerate(arena.held_out):
            self.say(f"{contestant.name} {index}/{len(arena.held_out)}")
            latents, spent = counted(lambda b=batch: contestant.sample(tuned.knobs, b))
            parts.append(latents)
            macs += spent
        latents = torch.cat(parts)
        reduction = arena.macs_uncached * len(latents) / macs
        if reduction < IDLE:
            idle = f"runs, but skips nothing: {reduction:.3f}x fewer MACs"
            raise (DoesNotApply if contestant.kind == "library" else RuntimeError)(idle)
        return {
            "macs": macs / len(latents),
            "macs_reduction": round(reduction, 4),
            "about": contestant.about(tuned.knobs),
            "seconds": round(time.perf_counter() - started, 1),
            **judge(arena, arena.pictures(latents), arena.first),
        }

    def _contestant(self, name: str) -> Contestant:
        if name not in self._ready:
            contestant = make(name, self.arena)
            self._ready[name] = contestant
            try:
                self.say(f"{name} calibration")
                contestant.prepare()
            except DoesNotApply as error:
                self._ready[name] = error
        found = self._ready[name]
        if isinstance(found, DoesNotApply):
            raise found
        return found


def _tuning(tuned: Tuned) -> Record:
    return {
        "knobs": tuned.knobs,
        "reached": tuned.reached,
        "trials": [
            {"knobs": t.knobs, "macs_reduction": t.reduction, "psnr": t.psnr} for t in tuned.trials
        ],
    }


def _same(cell: Record, name: str, tuned: Tuned) -> bool:
    return (
        cell.get("contestant") == name
        and cell.get("knobs") == json.loads(json.dumps(tuned.knobs))
        and "each" in cell
    )
