"""Every contestant at every MACs budget, on the same prompts and seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from . import metrics
from .arena import Arena
from .contestants import Contestant, DoesNotApply
from .judging import PSNR, TO_REAL, judge
from .ledger import Ledger, Record
from .macs import counted
from .peers import PEERS
from .policies import POLICIES, SOLVERS, ZOO, FewerSteps, Policy, Published
from .tuning import Tuned, Tuner, check_skips

UNCACHED, OTHER_SEEDS = "uncached", "uncached, other seeds"


def names() -> list[str]:
    """All contestants, ours first."""
    return [*POLICIES, *SOLVERS, *ZOO, *PEERS]


def make(name: str, arena: Arena) -> Contestant:
    """A contestant by its name; KeyError for another name."""
    if name in POLICIES:
        return Policy(name, arena)
    if name in ZOO:
        return Published(name, arena)
    return (FewerSteps if name in SOLVERS else PEERS[name])(name, arena)


def cell_name(contestant: str, budget: float) -> str:
    """Name a cell."""
    return f"{contestant} {budget:g}x"


@dataclass(frozen=True)
class Race:
    """Who is `behind` dB or more behind the best of the budget after `after` samples stops there.

    What is seen at once on a quarter of the samples need not be paid for on all.
    """

    behind: float = float("inf")
    after: int = 64


class Contest:
    """The cells of one arena; those that exist in the ledger are not measured again.

    `chosen` are cells whose settings are taken as they are; other libraries are tuned on all
    calibration batches, or the first `tuning`. `say` is told what is being done, `tick` is called
    after each cell.
    """

    def __init__(
        self,
        arena: Arena,
        out: Path,
        say: Callable[[str], None] = lambda _: None,
        tick: Callable[[], None] = lambda: None,
        *,
        chosen: Mapping[str, Record] | None = None,
        race: Race | None = None,
        tuning: int | None = None,
    ) -> None:
        self.arena = arena
        self.chosen = chosen or {}
        self.race = race or Race()
        self.cells = Ledger(out / "cells.jsonl", arena.key)
        self.trials = Ledger(out / "trials.jsonl", arena.tuning_key)
        self.say, self.tick = say, tick
        self.tuner = Tuner(arena, self.trials, say, tuning)
        self._ready: dict[str, Contestant | DoesNotApply] = {}

    def run(self, contestants: list[str], budgets: list[float], *, redo: bool = False) -> None:
        """Measure what is missing; with `redo`, the named contestants' cells again."""
        if UNCACHED not in self.cells:
            self.say("uncached samples")
            self.cells.put(UNCACHED, judge(self.arena, self.arena.first, None))
        for budget in budgets:
            for name in contestants:
                cell = cell_name(name, budget)
                if redo or cell not in self.cells:
                    self.cells.put(cell, self._cell(name, budget, redo=redo))
                self.tick()
        # Last, because they cost as much as many cells and only tell the noise of distances to the
        # real set.
        if OTHER_SEEDS not in self.cells and self.arena.workload.real() is not None:
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

    def _cell(self, name: str, budget: float, *, redo: bool) -> Record:
        about: Record = {"contestant": name, "budget": budget}
        try:
            contestant = self._contestant(name)
            about["kind"] = contestant.kind
            if redo:
                contestant.forget(budget)
            tuned = self._tuned(contestant, budget)
            about |= tuned.record()
            # A contestant that reaches no budget has one best setting for all of them.
            known = [c for c in self.cells.records.values() if _same(c, name, tuned)]
            if known and not redo:
                return {k: v for k, v in known[0].items() if k != "name"} | about
            return about | self._measure(contestant, tuned, budget)
        except DoesNotApply as error:
            kind = "library" if name in PEERS else "baseline"
            return {"kind": kind} | about | {"does_not_apply": str(error)}

    def _tuned(self, contestant: Contestant, budget: float) -> Tuned:
        chosen = self.chosen.get(cell_name(contestant.name, budget), {})
        if chosen.get("trials"):
            return Tuned.from_record(chosen)
        return self.tuner.tune(contestant, budget)

    def _measure(self, contestant: Contestant, tuned: Tuned, budget: float) -> Record:
        """Sample the held-out set under the chosen setting and judge it."""
        arena = self.arena
        parts: list[torch.Tensor] = []
        macs, started = 0, time.perf_counter()
        for index, batch in enumerate(arena.held_out):
            self.say(f"{contestant.name} {index}/{len(arena.held_out)}")
            latents, spent = counted(lambda b=batch: contestant.sample(tuned.knobs, b))
            parts.append(latents)
            macs += spent
            if self._lost(parts, budget):
                break
        latents = torch.cat(parts)
        reduction = arena.macs_uncached * len(latents) / macs
        check_skips(reduction)
        return {
            "macs": macs / len(latents),
            "macs_reduction": round(reduction, 4),
            "about": contestant.about(tuned.knobs),
            "seconds": round(time.perf_counter() - started, 1),
            **judge(arena, arena.pictures(latents), arena.first),
        }

    def _lost(self, parts: list[torch.Tensor], budget: float) -> bool:
        """Whether the race is over for who made these latents; asked once."""
        count = sum(map(len, parts))
        if not 0 <= count - self.race.after < len(parts[-1]) or self.race.behind == float("inf"):
            return False
        leaders = [
            float(np.mean(c["each"][PSNR.key][:count]))
            for c in self.cells.records.values()
            if c.get("budget") == budget and c.get("samples") == len(self.arena.captions)
        ]
        images, uncached = self.arena.decode(torch.cat(parts)), self.arena.first.images[:count]
        return bool(leaders) and (
            float(metrics.psnr(images, uncached).mean()) < max(leaders) - self.race.behind
        )

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


def _same(cell: Record, name: str, tuned: Tuned) -> bool:
    return (
        cell.get("contestant") == name
        and cell.get("knobs") == json.loads(json.dumps(tuned.knobs))
        and "each" in cell
    )
