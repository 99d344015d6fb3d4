"""Wall-clock of the settings that the comparison chose, in turns, in one process.

Each library runs as it is (eager) and with its blocks compiled by Inductor, where that works;
ditcache with Inductor. One round is one batch of samples for everybody; a speedup is the median
over rounds of the ratio to the uncached eager model in the same round.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from .contest import Contest, cell_name, make
from .contestants import DoesNotApply
from .ledger import Ledger, Record
from .peers.base import Peer
from .policies import Policy
from .standing import ranked
from .timing import interleaved
from .workload import Batch

EAGER, INDUCTOR = "uncached eager", "uncached inductor"
Run = Callable[[Batch], Any]


class Walls:
    """Times the cells of a contest; `ledger` keeps a record for each budget."""

    def __init__(self, contest: Contest, ledger: Ledger, rounds: int) -> None:
        self.contest, self.arena = contest, contest.arena
        self.ledger, self.rounds = ledger, rounds
        self.failed: dict[str, str] = {}

    def run(self, contestants: list[str], budgets: list[float]) -> None:
        """Time every budget that has cells."""
        for budget in budgets:
            with ExitStack() as stack:
                runs: dict[str, Run] = {EAGER: self._plain(), INDUCTOR: self._inductor()}
                for name in contestants:
                    cell = self.contest.cells.records.get(cell_name(name, budget))
                    if cell and ranked([cell], budget):
                        runs |= self._runs(name, cell, stack)
                self.ledger.put(f"{budget:g}x", self._time(runs, budget))

    def _time(self, runs: dict[str, Run], budget: float) -> Record:
        working: dict[str, Run] = {}
        for name, run in runs.items():
            self.contest.say(f"{name}: first run")
            try:
                run(self.arena.held_out[0])  # compiles
                working[name] = run
            except Exception as error:
                self.failed[name] = f"{type(error).__name__}: {error}"
        batches = {name: itertools.cycle(self.arena.held_out) for name in working}
        variants = {
            name: functools.partial(lambda run, source: run(next(source)), run, batches[name])
            for name, run in working.items()
        }
        self.contest.say(f"{budget:g}x: {self.rounds} rounds")
        walls = interleaved(variants, self.rounds, skip_first=False)
        base = walls[EAGER]
        return {
            "budget": budget,
            "rounds": self.rounds,
            "failed": dict(self.failed),
            "threads": torch.get_num_threads(),
            "walls": {
                name: {
                    "seconds": [round(s, 4) for s in wall.seconds],
                    "speedup": round(wall.speedup(base), 4),
                    "range": [round(x, 4) for x in wall.speedup_range(base)],
                }
                for name, wall in walls.items()
            },
        }

    def _plain(self) -> Run:
        model = self.arena.workload.denoiser
        return lambda batch: self._sample(model, batch)

    def _inductor(self) -> Run:
        model: Any = torch.compile(self.arena.copy_of_model(), backend="inductor")
        return lambda batch: self._sample(model, batch)

    def _runs(self, name: str, cell: Record, stack: ExitStack) -> dict[str, Run]:
        contestant = make(name, self.arena)
        knobs = cell["knobs"]
        if isinstance(contestant, Policy):
            if contestant.kind != "ditcache":
                return {}  # the same runtime with other weights
            plan = contestant.plan(knobs["speedup"])
            options: dict[str, Any] = {"plan": plan}
            model: Any = torch.compile(
                self.arena.copy_of_model(), backend="ditcache", options=options
            )
            return {f"{name} inductor": lambda batch: self._sample(model, batch)}
        if not isinstance(contestant, Peer):
            return {}
        runs: dict[str, Run] = {}
        contestant.prepare()
        for compiled in (False, True):
            label = f"{name} {'inductor' if compiled else 'eager'}"
            try:
                hooked = stack.enter_context(contestant.enabled(knobs))
                if compiled:
                    _compile_blocks(hooked)
            except DoesNotApply as error:
                self.failed[label] = str(error)
                continue
            runs[label] = lambda batch, m=hooked: self._sample(m, batch)
        return runs

    def _sample(self, model: Any, batch: Batch) -> Any:
        return self.arena.workload.sample(model, batch, self.arena.setting.steps)


def best_walls(record: Record) -> dict[str, Record]:
    """Each contestant's faster variant, by contestant."""
    found: dict[str, Record] = {}
    for label, wall in record["walls"].items():
        name, _, variant = label.rpartition(" ")
        if name not in found or wall["speedup"] > found[name]["speedup"]:
            found[name] = wall | {"variant": variant}
    return found


def _compile_blocks(model: Any) -> None:
    """Compile each repeated block, as diffusers advises for models with hooks."""
    if getattr(model, "_repeated_blocks", None):
        model.compile_repeated_blocks()
        return
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList):
            for block in module:
                block.compile()
