"""Candidates: the plans of one budget that are worth a try in closed loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .error_diffusion import Array
from .forecasters import EDF, Lagrange, Taylor
from .plan_format import RegionSchedule
from .portfolio import STARTS, Candidate, improve, ranked, schedule_of
from .schedules import Schedule, uniform_index

REFITTED = "refit"


@dataclass(frozen=True)
class Contender:
    """A schedule that may run, and whether its weights may be refitted."""

    schedule: RegionSchedule
    refits: bool = True

    def refitted(self, weights: Array) -> Contender:
        """The same schedule with other weights."""
        k = self.schedule.history
        rows = tuple(tuple(float(w) for w in row) for row in weights)
        made = replace(self.schedule, weights=rows, forecaster=f"{REFITTED}(k={k})")
        return replace(self, schedule=made)


def contenders(
    gram: Array, timesteps: Sequence[float], c: Array, n: int, count: int, *, refits: bool
) -> list[Contender]:
    """Up to `count` schedules of `n` steps, best first by the model-free merit.

    The best for each number of combined outputs, since how many a model bears is not seen in its
    outputs; then different schedules rather than different weights on one, as a refit changes the
    weights anyway: the best of every standard schedule. The first few of all these are improved by
    moving steps. Beside them Taylor's forecast on uniform steps as published. Without `refits` also
    Lagrange and Taylor on their best schedules, which assume nothing about the sampler.
    """
    x = np.asarray(timesteps, dtype=np.float64)
    every = ranked(gram, x, c, n)
    fitted = [e for e in every if isinstance(e.forecaster, EDF)]
    found: dict[tuple[Schedule, int], Candidate] = {}

    def add(candidate: Candidate) -> None:
        found.setdefault((candidate.steps, candidate.forecaster.history), candidate)

    starts: dict[int, Candidate] = {}
    for start in fitted:
        starts.setdefault(start.forecaster.history, start)
    first = list(starts.values())
    for start in fitted:
        if len(first) >= STARTS:
            break
        if all(start.steps != other.steps for other in first):
            first.append(start)
    for start in first:
        add(improve(gram, x, c, start))
    uniform = uniform_index(len(x), n)
    plain = [
        Contender(schedule_of(Candidate(uniform, "uniform index", Taylor(order), 0.0), gram, x, c))
        for order in (2, 1)
    ]
    plain = [replace(p, refits=False) for p in plain]
    if not refits:
        for kind in (Lagrange, Taylor):
            best = next(e for e in every if isinstance(e.forecaster, kind) and e.forecaster.order)
            plain.append(Contender(schedule_of(best, gram, x, c), refits=False))
    for start in fitted:
        if len(found) + len(plain) >= count:
            break
        if all(start.steps != steps for steps, _ in found):
            add(start)
    chosen = [Contender(schedule_of(f, gram, x, c), refits=refits) for f in found.values()]
    return [*chosen, *plain][: max(count, 1)]
