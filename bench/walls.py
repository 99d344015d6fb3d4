"""Wall-clock of the settings that the comparison chose, in turns, in one process.

The settings are those of the contest's cells, or of a committed document. Each library runs as it
is (eager) and with its blocks compiled by Inductor, where that works; ditcache with Inductor. One
round is one batch of samples for everybody; a speedup is the median over rounds of the ratio to the
uncached eager model in the same round.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import ditcache
import torch
from rich.table import Table
from torch._dynamo import config as dynamo_config

from .contest import Contest, cell_name, make
from .contestants import DoesNotApply
from .ledger import Ledger, Record
from .peers.base import Peer
from .policies import Policy
from .standing import ranked
from .timing import interleaved
from .workload import Batch

EAGER, OURS = "uncached eager", "uncached ditcache"
RECOMPILES = 256
"""Every library's blocks are the same code to Dynamo; past its limit the later ones would run eager
without a word."""
Run = Callable[[Batch], Any]


class Walls:
    """Times the cells of a contest; `ledger` keeps a record for each budget.

    `inner` is the compiler of the compiled variants.
    """

    def __init__(
        self, contest: Contest, ledger: Ledger, rounds: int, inner: str = "inductor"
    ) -> None:
        self.contest, self.arena = contest, contest.arena
        self.ledger, self.rounds, self.inner = ledger, rounds, inner
        self.failed: dict[str, str] = {}

    def run(self, contestants: list[str], budgets: list[float]) -> None:
        """Time every budget that has cells; raises ValueError if none has."""
        cells = {**self.contest.chosen, **self.contest.cells.records}
        found: dict[float, list[Record]] = {}
        for budget in budgets:
            known = [cells.get(cell_name(name, budget)) for name in contestants]
            found[budget] = ranked([cell for cell in known if cell], budget)
        if not any(found.values()):
            raise ValueError("no cell to time: measure some, or give --settings a result.json")
        uncached = {
            EAGER: self._plain(),
            f"uncached {self.inner}": self._whole(),
            OURS: self._ours(None),
        }
        with dynamo_config.patch(recompile_limit=RECOMPILES):
            for budget, wanted in found.items():
                with ExitStack() as stack:
                    runs: dict[str, Run] = dict(uncached)
                    for cell in wanted:
                        runs |= self._runs(cell["contestant"], cell, stack)
                    made = self._time(runs, budget)
                    made["cells"] = [_work(c, self.arena.setting.steps) for c in wanted]
                    self.ledger.put(f"{budget:g}x", made)

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

    def _whole(self) -> Run:
        model: Any = torch.compile(self.arena.copy_of_model(), backend=self.inner)
        return lambda batch: self._sample(model, batch)

    @functools.cached_property
    def _compiled(self) -> Any:
        options: dict[str, Any] = {"inner": self.inner, "remember": False}
        model: Any = torch.compile(self.arena.copy_of_model(), backend="ditcache", options=options)
        self.arena.workload.sample(model, self.arena.held_out[0], 2)  # the first call compiles
        return model

    def _ours(self, plan: ditcache.Plan | None) -> Run:
        def run(batch: Batch) -> Any:
            if plan is None:
                ditcache.remove(self._compiled)
            else:
                ditcache.apply(self._compiled, plan)
            return self._sample(self._compiled, batch)

        return run

    def _runs(self, name: str, cell: Record, stack: ExitStack) -> dict[str, Run]:
        contestant = make(name, self.arena)
        knobs = cell["knobs"]
        if isinstance(contestant, Policy):
            if contestant.kind != "ditcache":
                return {}  # the same runtime with other weights
            return {f"{name} {self.inner}": self._ours(contestant.plan(knobs))}
        if not isinstance(contestant, Peer):
            return {}
        runs: dict[str, Run] = {}
        contestant.prepare()
        for compiled in (False, True):
            label = f"{name} {f'{self.inner} blocks' if compiled else 'eager'}"
            try:
                hooked = stack.enter_context(contestant.enabled(knobs))
                if compiled:
                    _compile_blocks(hooked, self.inner)
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
        name, _, variant = label.partition(" ")
        if name not in found or wall["speedup"] > found[name]["speedup"]:
            found[name] = wall | {"variant": variant}
    return found


def table(record: Record) -> Table:
    """The walls of one budget, fastest first."""
    shown = Table(
        title=f"{record['budget']:g}x: a batch's loop, {record['rounds']} rounds in turns",
        caption="computed: steps computed in full. speedup: over the uncached eager model, median "
        "over rounds (and range)",
        caption_justify="left",
        box=None,
    )
    for heading in ("", "timed", "computed", "MACs", "seconds", "speedup"):
        shown.add_column(heading, justify="left" if heading in ("", "timed") else "right")
    work = {cell["contestant"]: cell for cell in record.get("cells", ())}
    for label, wall in sorted(record["walls"].items(), key=lambda kv: -kv[1]["speedup"]):
        name, _, variant = label.partition(" ")
        cell = work.get(name, {})
        low, high = wall["range"]
        shown.add_row(
            name,
            variant,
            str(cell.get("computed_steps", "all")),
            f"{cell.get('macs_reduction', 1):.2f}x",
            f"{statistics.median(wall['seconds']):.2f}",
            f"{wall['speedup']:.2f}x ({low:.2f}-{high:.2f})",
        )
    return shown


def _work(cell: Record, steps: int) -> Record:
    """How much a setting computes, as it was counted when its cell was measured."""
    about = cell["about"]
    share = 1 - about["skipped_calls"] / about["calls"] if "calls" in about else 1.0
    return {
        "contestant": cell["contestant"],
        "knobs": cell["knobs"],
        "macs_reduction": cell["macs_reduction"],
        "computed_steps": about.get("computed_steps", round(share * steps)),
    }


def _compile_blocks(model: Any, inner: str) -> None:
    """Compile each repeated block, as diffusers advises for models with hooks."""
    if getattr(model, "_repeated_blocks", None):
        model.compile_repeated_blocks(backend=inner)
        return
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList):
            for block in module:
                block.compile(backend=inner)
