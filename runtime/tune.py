"""Tune: choose a plan by running it, and fit its weights to the course that it takes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..passes.budget import steps_for
from ..passes.candidates import Contender, contenders
from ..passes.forecasters import Lagrange
from ..passes.plan_format import Plan, PlanError
from ..passes.plan_from_profile import Problem, evidence_of, problem
from ..passes.plan_parts import DENOISER
from ..passes.profile import Profile
from ..passes.refit import Courses, merit, refit
from .profiling import courses
from .recorder import Recording
from .session import Session

ROUNDS = 4
"""Replays of the plan that is chosen in the end; each but the first runs under refitted weights."""
FIRST = 4
"""Computed steps that are tried first where no error is predicted."""
LARGER = 1.12
"""Factor on the computed steps where the measured error is above the one asked for."""

Generate = Callable[[int], Any]


@dataclass
class Entry:
    """A contender on its way, and what its replays came to."""

    now: Contender
    errors: np.ndarray = field(default_factory=lambda: np.zeros(0))
    merit: float = np.inf
    calls: int = 0
    then: Contender | None = None  # with weights refitted to the last replay


@dataclass
class Tuner:
    """Replays plans on the generations that a profile was made from, and measures what they do.

    With a reference in the profile the final latents are compared, in sketches; without one the
    values that `generate` returns, against `finals`, those of the uncached runs.
    """

    session: Session
    generate: Generate
    profile: Profile
    calls: int
    finals: list[np.ndarray] | None = None

    def plan(self, n: int, *, candidates: int, policy: str) -> Plan:
        """The best plan of `n` computed steps, by successive halving over plans and generations.

        Each round replays the plans that are left on more generations, keeps the better half, and
        gives the kept ones weights that are refitted to what the replay recorded. The last two
        rounds run on all generations; the plan with the best measured `refit.merit` of those wins,
        with or without refit. The solved plan is measured on all generations in any case: what is
        given is never worse than it on them.
        """
        given = problem(self.profile)
        pool = [Entry(c) for c in self._contenders(given, n, candidates)]
        tried, replays, finished = len(pool), 0, list[Entry]()
        for number in range(ROUNDS):
            calls = max(min(2, self.calls), self.calls >> max(ROUNDS - 2 - number, 0))
            for entry in pool:
                self._measure(entry, given, policy, calls)
                replays += calls
            pool.sort(key=lambda entry: entry.merit)
            if calls == self.calls:
                finished += [replace(entry) for entry in pool]
            keep = max(len(pool) // 2, 2) if number < ROUNDS - 2 else len(pool)
            pool = [Entry(entry.then or entry.now) for entry in pool[:keep]]
        solved = Entry(Contender(self.profile.plan(computed_steps=n).regions[0], refits=False))
        if solved.now.schedule not in [entry.now.schedule for entry in finished]:
            self._measure(solved, given, policy, self.calls)
            tried, replays = tried + 1, replays + self.calls
            finished.append(solved)
        best = min(finished, key=lambda entry: entry.merit)
        if not np.isfinite(best.merit):
            raise PlanError(
                "no plan could be measured: under every one the model fell back to computing; "
                "see ditcache.summary(model).fallbacks"
            )
        how = f"closed loop: best of {tried} plans, {replays} replays of {self.calls} generations"
        made = self._as_plan(best.now, given, policy)
        return replace(made, expected_error=float(np.sqrt(best.errors.mean())), chosen=how)

    def _contenders(self, given: Problem, n: int, count: int) -> list[Contender]:
        times = given.target.timesteps.tolist()
        refits = self.profile.reference is not None
        return contenders(given.gram, times, given.c, n, count, refits=refits)

    def errors(self, plan: Plan, calls: int) -> tuple[np.ndarray, Courses | None]:
        """Relative squared errors of the final samples under a plan, and the course they took.

        Both are empty where the plan was not followed. Without a reference there is no course.
        """
        stats, none = self.session.stats, np.zeros(0)
        before = stats.forecast
        recordings, finals = self._replay(plan, calls)
        if stats.forecast == before and plan.computed_steps < len(plan.timesteps):
            return none, None  # what was computed in full says nothing of the plan
        reference = self.profile.reference
        if reference is None:
            assert self.finals is not None
            pairs = zip(finals, self.finals, strict=False)
            return np.concatenate([_relative(a, b) for a, b in pairs]), None
        # A plan for parts of the denoiser makes a new output at every step.
        schedule, steps = plan.regions[0], range(len(plan.timesteps))
        computed = schedule.computed if schedule.region == DENOISER else tuple(steps)
        course = courses(recordings, self.profile)
        if course is None or not _followed(course, computed):
            return none, None
        end = course.end(reference.update, computed, np.asarray(schedule.weights))
        return reference.errors(end), course

    def _measure(self, entry: Entry, given: Problem, policy: str, calls: int) -> None:
        schedule, reference = entry.now.schedule, self.profile.reference
        entry.errors, course = self.errors(self._as_plan(entry.now, given, policy), calls)
        if reference is not None and course is not None and entry.now.refits:
            prior = Lagrange(schedule.history - 1).rows(
                schedule.computed, given.x, given.c, given.gram
            )
            found = refit(reference, course, schedule.computed, schedule.history, prior)
            entry.then = entry.now.refitted(found)
        if len(entry.errors) and np.isfinite(entry.errors).all():
            entry.merit = merit(entry.errors)

    def _replay(self, plan: Plan, calls: int) -> tuple[list[Recording], list[np.ndarray]]:
        keep = self.profile.reference is None
        finals: list[np.ndarray] = []
        with collecting(self.session, width=self.profile.sketch, plan=plan) as recordings:
            for i in range(calls):
                result = run_one(self.session, self.generate, i)
                if keep:
                    finals.append(final_of(result))
        return recordings, finals

    def _as_plan(self, contender: Contender, given: Problem, policy: str) -> Plan:
        profile = self.profile
        main = profile.region(DENOISER) or profile.regions[0]
        return Plan(
            signature=profile.signature,
            timesteps=profile.timesteps,
            regions=(contender.schedule,),
            policy=policy,
            solver=given.solver,
            guidance=profile.guidance,
            shape=main.shape,
            dtype=main.dtype,
            **evidence_of(profile, given.target, given.c, profile.guidance, [contender.schedule]),
        ).validate()


def tune_plan(
    tuner: Tuner,
    *,
    speedup: float | None,
    computed_steps: int | None,
    max_error: float | None,
    candidates: int,
    finer: Callable[[Tuner, Plan], Plan] | None = None,
) -> Plan:
    """See `ditcache.tune`: one budget, of steps or of measured error.

    `finer` is given the best plan for the whole denoiser and may know a better one at equal work.
    """
    profile, steps = tuner.profile, len(tuner.profile.timesteps)
    if max_error is None:
        n = steps_for(steps, computed_steps=computed_steps, speedup=speedup)
    else:
        n = profile.plan(max_error=max_error).computed_steps if profile.tells_errors else FIRST
    while True:
        if n >= steps:
            return profile.plan(computed_steps=steps)
        plan = tuner.plan(n, candidates=candidates, policy="edf")
        plan = plan if finer is None else finer(tuner, plan)
        if max_error is None or (plan.expected_error or 0.0) <= max_error:
            return plan
        n = min(steps, max(n + 1, round(n * LARGER)))


@contextmanager
def collecting(
    session: Session, *, width: int, plan: Plan | None = None, kinds: tuple[str, ...] = (DENOISER,)
) -> Generator[list[Recording]]:
    """Record what the model does inside: in full, or under `plan`. Puts everything back after."""
    before = (session.enabled, session.record_kinds, session.sketch_width, session.plans)
    found: list[Recording] = []
    session.generations.end_all()
    session.clock.restart()
    session.enabled, session.sketch_width = True, width
    session.record(kinds)
    session.collected, session.replaying = found, plan is not None
    if plan is not None:
        session.plans = [plan]
    try:
        yield found
    finally:
        session.generations.end_all()
        session.clock.restart()
        session.collected, session.replaying = None, False
        session.enabled, kinds, session.sketch_width, plans = before
        if plan is not None:  # else what a first call has loaded from the store stays
            session.plans = plans
        session.record(kinds)


def run_one(session: Session, generate: Generate, i: int) -> Any:
    """One call of the caller's own loop; all that it began has ended when this returns."""
    result = generate(i)
    session.generations.end_all()
    session.clock.restart()
    return result


def final_of(result: Any) -> np.ndarray:
    """What a generation returned, as numbers.

    A tensor, an array, a picture, a list of such, or an object with one as its `images`, `frames`
    or `sample`; of a tuple the first. Raises PlanError for anything else.
    """
    for name in ("images", "frames", "sample"):
        result = getattr(result, name, result)
    if isinstance(result, tuple):
        result = result[0]
    if isinstance(result, torch.Tensor):
        result = result.detach().float().cpu().numpy()
    elif isinstance(result, list):
        result = np.stack([final_of(part) for part in result]) if result else None
    elif hasattr(result, "__array_interface__"):
        result = np.asarray(result)
    if not isinstance(result, np.ndarray) or not np.issubdtype(result.dtype, np.number):
        raise PlanError(
            f"generate() returned {type(result).__name__}, which cannot be compared, and the final "
            "latents cannot be told from the model's calls (a stochastic or multi-step sampler); "
            "let generate return its latents or images as a tensor, an array or pictures"
        )
    return result.astype(np.float64)


def _relative(made: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if made.shape != wanted.shape:
        raise PlanError(f"generate() returned {made.shape} under a plan and {wanted.shape} before")
    rows = len(wanted) if wanted.ndim > 1 else 1
    off = np.sum((made - wanted).reshape(rows, -1) ** 2, axis=1)
    return off / max(float(np.mean(np.sum(wanted.reshape(rows, -1) ** 2, axis=1))), 1e-300)


def _followed(course: Courses, computed: tuple[int, ...]) -> bool:
    """Whether exactly the planned steps were computed; else the replay says nothing of the plan."""
    ran = np.isfinite(course.y).all(axis=(0, 1, 3))
    return bool(np.isfinite(course.x).all()) and tuple(np.flatnonzero(ran)) == tuple(computed)
