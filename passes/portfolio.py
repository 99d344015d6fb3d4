"""The portfolio: of many schedules and forecasters take the pair that harms the sample least.

Which schedule and which forecaster are best differs from model to model and from budget to budget,
so nothing is fixed in advance: each pair is scored on the Gram matrix alone, without a call of the
model, and the best schedule is then improved by moving single steps.

Policies:
- `edf`: the whole portfolio.
- `reuse`, `taylor-1`, `taylor-2`, `lagrange-1`, `lagrange-2`: that forecaster as published, on
  steps uniform in the index.
- the same with `-best` added: that forecaster on the best of the standard schedules (those that
  need no measurement, plus the dynamic programme), without the search over single steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .budget import FEWEST, check_budget, steps_for
from .clipped_run import ClippedRun
from .error_diffusion import (
    Array,
    Forecaster,
    Trace,
    diffuse,
    expected_error,
    reference_power,
)
from .forecasters import EDF, Lagrange, Taylor
from .plan_format import PlanError, RegionSchedule
from .schedules import Schedule, standard_schedules, uniform_index

LARGE_GRID = 200
"""Above this many steps the search over single steps is left out and fewer betas are tried."""

BETAS = (0.15, 0.3, 0.45, 0.6)
HISTORIES = (2, 3, 4)
STARTS = 4
"""How many of the best candidates are improved by moving single steps."""

PLAIN: dict[str, Forecaster] = {
    "reuse": Taylor(0),
    "taylor-1": Taylor(1),
    "taylor-2": Taylor(2),
    "lagrange-1": Lagrange(1),
    "lagrange-2": Lagrange(2),
}
POLICIES = ("edf", *PLAIN, *(f"{name}-best" for name in PLAIN))

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Candidate:
    """One pair; `merit` is what the portfolio minimises (relative, squared)."""

    steps: Schedule
    schedule: str
    forecaster: Forecaster
    merit: float


def solve(
    gram: Array,
    timesteps: Sequence[float],
    c: Array,
    *,
    computed_steps: int | None = None,
    speedup: float | None = None,
    max_error: float | None = None,
    policy: str = "edf",
    region: str = "denoiser",
    search: bool = True,
    power: float | None = None,
    fits: bool = True,
    clipped: ClippedRun | None = None,
) -> tuple[RegionSchedule, float]:
    """Return the best schedule of one region under one budget, and its expected error.

    `gram` [T, T] (symmetric), `timesteps` and `c` [T]. Exactly one budget: `computed_steps`,
    `speedup` (computed steps = floor(T / speedup)) or `max_error` (the fewest computed steps with
    at most that expected error, found by bisection, so up to the small non-monotonicity of the
    frontier). The error is `error_diffusion.expected_error`, relative rms of the final sample.
    Without `search` the schedules are taken as they are, in a fifth of the time. `power` is as for
    `expected_error`. Without `fits` nothing that leans on an exact c is tried: no solved rows and
    no search, but the plain forecasters on the standard schedules. With `clipped` the error is that
    of walking through it, and so is the choice between the portfolio's best and those plain ones.

    Raises `PlanError` for an unknown policy, no or several budgets, or one out of reach.
    """
    if policy not in POLICIES:
        raise PlanError(f"unknown policy {policy!r}; known are {', '.join(POLICIES)}")
    x = np.asarray(timesteps, dtype=np.float64)
    gram, c = (gram + gram.T) / 2, np.asarray(c, dtype=np.float64)
    check_budget(computed_steps=computed_steps, speedup=speedup, max_error=max_error)

    def one(n: int) -> tuple[RegionSchedule, float]:
        if n == len(x):
            return _every_step(n, region), 0.0
        chosen = _chosen(gram, x, c, n, policy=policy, search=search, fits=fits)
        if clipped is not None and policy == "edf":
            chosen += _plain(gram, x, c, n)
        made = [schedule_of(candidate, gram, x, c, region) for candidate in chosen]
        errors = [
            expected_error(s.computed, np.asarray(s.weights), gram, c, power)
            if clipped is None
            else clipped.error(s.computed, s.weights)
            for s in made
        ]
        best = int(np.argmin(errors))
        return made[best], errors[best]

    if max_error is None:
        return one(steps_for(len(x), computed_steps=computed_steps, speedup=speedup))
    low, high = min(FEWEST, len(x)), len(x)
    best = one(high)
    while low < high:
        middle = (low + high) // 2
        tried = one(middle)
        if tried[1] <= max_error:
            best, high = tried, middle
        else:
            low = middle + 1
    return best


def guided_gram(gram: Array, guidance: float | None, conditional: int = 0) -> Array:
    """One [T, T] Gram matrix for the outputs that the sampler sees, from [B, B, T, T].

    With two branches and a scale w the sampler sees y = w y_c + (1 - w) y_u, whose Gram matrix is
    w^2 G_cc + w (1 - w) (G_cu + G_cu') + (1 - w)^2 G_uu; `conditional` is the index of c. With an
    unknown scale the branches' own errors are added up instead.
    """
    branches = len(gram)
    if guidance is None or branches != 2:
        whole = np.einsum("bbst->st", gram)
    else:
        w = np.full(2, 1.0 - guidance)
        w[conditional] = guidance
        whole = np.einsum("a,b,abst->st", w, w, gram)
    return (whole + whole.T) / 2


def _every_step(steps: int, region: str) -> RegionSchedule:
    rows = tuple((0.0,) for _ in range(steps))
    return RegionSchedule(region, tuple(range(steps)), rows, 1, "reuse", "every step")


def _chosen(
    gram: Array, x: Array, c: Array, n: int, *, policy: str, search: bool, fits: bool
) -> list[Candidate]:
    """What a policy comes to: one candidate, best by its merit."""
    if policy in PLAIN:
        sets = {"uniform index": uniform_index(len(x), n)}
        return _best(gram, x, c, sets, [PLAIN[policy]])[:1]
    if policy != "edf":
        plain = PLAIN[policy.removesuffix("-best")]
        return _best(gram, x, c, standard_schedules(gram, x, c, n), [plain])[:1]
    if fits:
        return [_portfolio(gram, x, c, n, search)]
    return [min(_plain(gram, x, c, n), key=lambda candidate: candidate.merit)]


def _plain(gram: Array, x: Array, c: Array, n: int) -> list[Candidate]:
    """Every plain forecaster on the best of the standard schedules for it."""
    sets = standard_schedules(gram, x, c, n)
    return [_best(gram, x, c, sets, [plain])[0] for plain in PLAIN.values()]


def schedule_of(
    chosen: Candidate, gram: Array, x: Array, c: Array, region: str = "denoiser"
) -> RegionSchedule:
    """Write a candidate out, with its weights."""
    rows = chosen.forecaster.rows(chosen.steps, x, c, gram)
    return RegionSchedule(
        region=region,
        computed=chosen.steps,
        weights=tuple(tuple(float(w) for w in row) for row in rows),
        history=chosen.forecaster.history,
        forecaster=chosen.forecaster.name,
        schedule=chosen.schedule,
    )


def ranked(gram: Array, x: Array, c: Array, n: int) -> list[Candidate]:
    """Every standard schedule with every forecaster, best first."""
    betas = BETAS[1:2] if len(x) > LARGE_GRID else BETAS
    sets = standard_schedules(gram, x, c, n)
    found: list[Candidate] = []
    for k in HISTORIES:
        found += _best(gram, x, c, sets, [EDF(k, beta) for beta in betas])
    for plain in PLAIN.values():
        found += _best(gram, x, c, sets, [plain])
    return sorted(found, key=lambda candidate: candidate.merit)


def _portfolio(gram: Array, x: Array, c: Array, n: int, search: bool) -> Candidate:
    """Score schedules x forecasters, then move single steps of the best few while it helps."""
    found = ranked(gram, x, c, n)
    if len(x) > LARGE_GRID or not search:
        return found[0]
    starts: list[Candidate] = []
    for candidate in found:
        if all(
            candidate.steps != s.steps or candidate.forecaster.history != s.forecaster.history
            for s in starts
        ):
            starts.append(candidate)
        if len(starts) == STARTS:
            break
    improved = [improve(gram, x, c, start) for start in starts]
    return min(improved, key=lambda candidate: candidate.merit)


def _best(
    gram: Array,
    x: Array,
    c: Array,
    sets: dict[str, Schedule],
    forecasters: Sequence[Forecaster],
) -> list[Candidate]:
    """Every pair as a candidate, best first; the forecasters share kind and history."""
    pairs = [(name, chosen, f) for name, chosen in sets.items() for f in forecasters]
    trace = diffuse(_masks((p[1] for p in pairs), len(x)), [p[2] for p in pairs], x, c, gram)
    merits = _merit(trace, gram, c)
    order = np.argsort(merits, kind="stable")
    return [Candidate(pairs[i][1], pairs[i][0], pairs[i][2], float(merits[i])) for i in order]


def _merit(trace: Trace, gram: Array, c: Array) -> Array:
    """What is left at the end and what deviations on the way count, over c' G c."""
    merit = (trace.final + trace.passing) / reference_power(gram, c)
    return np.where(np.isfinite(merit), merit, np.inf)


def improve(gram: Array, x: Array, c: Array, start: Candidate, rounds: int = 12) -> Candidate:
    """Move one computed step at a time (and try the other betas) while the merit falls."""
    best = start
    for _ in range(rounds):
        sets = {str(i): chosen for i, chosen in enumerate(_neighbours(best.steps, len(x)))}
        if not sets:
            break
        found = _best(gram, x, c, sets, [best.forecaster])[0]
        if found.merit >= best.merit * (1 - 1e-3):
            break
        name = best.schedule.removesuffix(", improved") + ", improved"
        best = replace(found, schedule=name)
    if isinstance(best.forecaster, EDF):
        fitted = [replace(best.forecaster, beta=beta) for beta in (0.0, *BETAS, 0.8)]
        tuned = _best(gram, x, c, {best.schedule: best.steps}, fitted)[0]
        best = min(best, tuned, key=lambda candidate: candidate.merit)
    return best


def _neighbours(steps: Schedule, total: int) -> list[Schedule]:
    """Schedules with one step (never the first) moved by up to three places."""
    taken, found = set(steps), set[Schedule]()
    for i, step in enumerate(steps[1:], start=1):
        for shift in (-3, -2, -1, 1, 2, 3):
            moved = step + shift
            if 0 < moved < total and moved not in taken:
                found.add(tuple(sorted((*steps[:i], moved, *steps[i + 1 :]))))
    return sorted(found)


def _masks(chosen: Iterable[Schedule], steps: int) -> Mask:
    every = list(chosen)
    masks = np.zeros((len(every), steps), np.bool_)
    for row, computed in zip(masks, every, strict=True):
        row[list(computed)] = True
    return masks
