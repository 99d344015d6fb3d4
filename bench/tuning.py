"""The best setting of a contestant at a MACs budget, found on calibration samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from . import metrics
from .arena import Arena
from .contestants import Contestant, DoesNotApply, Family, Knobs
from .ledger import Ledger, Record
from .macs import counted
from .workload import Batch

SLACK = 0.02
"""A setting may spend this share more than the budget: decisions made from data come in lumps."""
IDLE = 1.02
"""A contestant whose MACs fall by less than this did nothing, whatever it was asked."""
PROBES = 7
PROBE_SAMPLES = 2


@dataclass(frozen=True)
class Trial:
    """A setting with the MACs reduction and PSNR (dB, mean) that it had on calibration samples."""

    knobs: Knobs
    reduction: float
    psnr: float


@dataclass(frozen=True)
class Failure:
    """Settings that the contestant itself refuses or breaks on, with its own words."""

    knobs: Knobs
    error: str


@dataclass(frozen=True)
class Tuned:
    """The setting chosen, what it was chosen from, and whether it keeps within the budget."""

    knobs: Knobs
    reached: bool
    trials: tuple[Trial, ...] = ()
    failures: tuple[Failure, ...] = ()
    samples: int = 0
    """What it was chosen on; 0 if there was nothing to choose."""

    @classmethod
    def from_record(cls, record: Record) -> Tuned:
        """Read back what `record` gave."""
        trials = (
            Trial(t["knobs"], t["macs_reduction"], t["psnr"]) for t in record.get("trials", ())
        )
        failures = (Failure(**failure) for failure in record.get("failures", ()))
        samples = record.get("tuned_on", 0)
        return cls(record["knobs"], record["reached"], tuple(trials), tuple(failures), samples)

    def record(self) -> Record:
        """As it stands in a cell."""
        trials = [
            {"knobs": t.knobs, "macs_reduction": t.reduction, "psnr": t.psnr} for t in self.trials
        ]
        record: Record = {"knobs": self.knobs, "reached": self.reached, "trials": trials}
        if self.failures:
            record["failures"] = [asdict(f) for f in self.failures]
        if self.samples:
            record["tuned_on"] = self.samples
        return record


def check_skips(reduction: float) -> None:
    """Raise DoesNotApply if a MACs reduction is none."""
    if reduction < IDLE:
        raise DoesNotApply(f"runs, but skips nothing: {reduction:.3f}x fewer MACs")


class Tuner:
    """Tries settings; every trial is kept, and serves other budgets and later runs too.

    In each family the free knob is searched on two samples for the weakest value that meets the
    budget; that setting is then measured on all calibration samples. Of the settings that keep
    within the budget there, the one with the best mean PSNR wins. `batches` takes fewer of them.
    """

    def __init__(
        self,
        arena: Arena,
        ledger: Ledger,
        say: Callable[[str], None],
        batches: int | None = None,
    ) -> None:
        self.arena = arena
        self.batches = arena.calibration[:batches]
        every = len(self.batches) == len(arena.calibration)
        self.stage = "trial" if every else f"trial of {len(self.batches)} batches"
        self.ledger = ledger
        self.say = say
        first = arena.calibration[0]
        self.probe = [Batch(first.conditions[:PROBE_SAMPLES], first.seeds[:PROBE_SAMPLES])]

    def tune(self, contestant: Contestant, budget: float) -> Tuned:
        """Find the setting for a budget; raises DoesNotApply if none works."""
        families = contestant.families(budget)
        if len(families) == 1 and not families[0].knob:
            return Tuned(families[0].fixed, reached=True)
        trials: list[Trial] = []
        failures: list[Failure] = []
        for family in families:
            try:
                trials += self._candidates(contestant, family, budget)
            except DoesNotApply as error:
                failures.append(Failure(family.fixed, str(error)))
        if not trials:
            raise DoesNotApply(failures[0].error)
        within = [t for t in trials if t.reduction >= budget * (1 - SLACK)]
        if within:
            best = max(within, key=lambda t: t.psnr)
        else:
            best = max(trials, key=lambda t: t.reduction)
        samples = sum(len(batch.seeds) for batch in self.batches)
        return Tuned(best.knobs, bool(within), tuple(trials), tuple(failures), samples)

    def _candidates(self, contestant: Contestant, family: Family, budget: float) -> list[Trial]:
        """The family's settings near the budget, measured on all calibration samples.

        Raises DoesNotApply if not even they skip anything.
        """
        value: Any = self._search(contestant, family, budget) if family.knob else None
        check_skips(self._probe(contestant, family.at(value)))
        found = [self._full(contestant, family.at(value))]
        if family.span is not None:
            # Two samples and sixteen decide a little differently.
            for _ in range(2):
                off = found[-1].reduction / budget
                if 1 - SLACK <= off <= 1 + 2 * SLACK or value >= family.span[1]:
                    break
                value = min(float(f"{value * off**-0.5:.4g}"), family.span[1])
                found.append(self._full(contestant, family.at(value)))
        return found

    def _search(self, contestant: Contestant, family: Family, budget: float) -> Any:
        """The weakest value of the free knob that meets the budget, or the strongest there is."""

        def meets(value: Any) -> bool:
            return self._probe(contestant, family.at(value)) >= budget * (1 - SLACK)

        if family.span is None:
            low, high = 0, len(family.values) - 1
            if not meets(family.values[high]):
                return family.values[high]
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if meets(family.values[middle]) else (middle + 1, high)
            return family.values[high]
        weak, strong = family.span
        if not meets(strong):
            return strong
        for _ in range(PROBES):
            # Four digits and a fixed start, so that budgets share their probes.
            middle = float(f"{(weak * strong) ** 0.5:.4g}")
            weak, strong = (weak, middle) if meets(middle) else (middle, strong)
            if self._probe(contestant, family.at(strong)) <= budget * (1 + 2 * SLACK):
                break
        return strong

    def _probe(self, contestant: Contestant, knobs: Knobs) -> float:
        return self._try(contestant, knobs, self.probe, "probe")["reduction"]

    def _full(self, contestant: Contestant, knobs: Knobs) -> Trial:
        found = self._try(contestant, knobs, self.batches, self.stage)
        return Trial(knobs, found["reduction"], found["psnr"])

    def _try(
        self, contestant: Contestant, knobs: Knobs, batches: list[Batch], stage: str
    ) -> dict[str, Any]:
        name = f"{contestant.name} {stage} {json.dumps(knobs, sort_keys=True)}"
        if name in self.ledger:
            return self.ledger[name]
        self.say(f"{contestant.name} {stage}")
        macs = 0
        psnr: list[float] = []
        at = 0
        for batch in batches:
            latents, spent = counted(lambda b=batch: contestant.sample(knobs, b))
            macs += spent
            if stage == self.stage:
                expected = self.arena.calibration_images[at : at + len(latents)]
                psnr += metrics.psnr(self.arena.decode(latents), expected).tolist()
            at += len(latents)
        reduction = round(self.arena.macs_uncached * at / macs, 4)
        record: dict[str, Any] = {"reduction": reduction}
        if psnr:
            record["psnr"] = round(sum(psnr) / len(psnr), 3)
        return self.ledger.put(name, record)
