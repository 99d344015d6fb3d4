"""The contestants of this house: ditcache's plans and policies, and fewer steps without cache."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ditcache
from ditcache import Plan, PlanError
from torch import Tensor

from .arena import Arena
from .contestants import Contestant, DoesNotApply, Family, Knobs
from .solvers import Solver
from .workload import Batch

TUNED = "edf-tuned"
"""EDF chosen and refitted in closed loop on the calibration samples, as the libraries are tuned."""
OURS = ("edf", TUNED)
POLICIES = (
    *OURS,
    "reuse",
    "taylor-1",
    "taylor-2",
    "taylor-1-best",
    "taylor-2-best",
    "lagrange-1",
    "lagrange-2",
    "lagrange-1-best",
    "lagrange-2-best",
)
SOLVERS: dict[str, Solver] = {"fewer-steps": "euler", "fewer-steps-ab2": "ab2"}


@dataclass(frozen=True)
class Range:
    """A policy of the zoo with the option that its authors turn to save more, and its values."""

    option: str
    values: Sequence[int]


ZOO: dict[str, Range] = {"deepcache": Range("interval", range(2, 13))}
"""Policies with knobs of their own in place of a budget. The others of the zoo are in the contest
as their authors' libraries."""


class Planned(Contestant):
    """Anything that runs as a plan on the compiled model."""

    kind = "baseline"

    def prepare(self) -> None:
        """Record the calibration samples, once for all policies."""
        self.arena.profile  # noqa: B018

    @abstractmethod
    def plan(self, knobs: Knobs) -> Plan:
        """The plan of these knobs."""

    def sample(self, knobs: Knobs, batch: Batch) -> Tensor:
        model = self.arena.compiled
        ditcache.apply(model, self.plan(knobs))
        before = ditcache.summary(model)
        try:
            latents = self.arena.workload.sample(model, batch, self.arena.setting.steps)
            after = ditcache.summary(model)
        finally:
            ditcache.remove(model)
        if after.fallbacks != before.fallbacks:
            raise RuntimeError(f"{self.name} fell back to computing: {after.fallbacks}")
        self._calls = after.calls - before.calls
        self._computed = after.computed - before.computed
        return latents

    def about(self, knobs: Knobs) -> dict[str, Any]:
        plan = self.plan(knobs)
        region = plan.regions[0]
        return {
            "computed_steps": plan.computed_steps,
            "schedule": region.schedule,
            "forecaster": region.forecaster,
            "expected_error": plan.expected_error,
            "chosen": plan.chosen,
            "calls": self._calls,
            "skipped_calls": self._calls - self._computed,
        }


class Policy(Planned):
    """A plan of one of ditcache's policies under a budget, made from the calibration samples."""

    def __init__(self, name: str, arena: Arena) -> None:
        super().__init__(name, arena)
        self.kind = "ditcache" if name in OURS else "baseline"
        self._plan = functools.cache(self._make_plan)

    def plan(self, knobs: Knobs) -> Plan:
        return self._plan(knobs["speedup"])

    def families(self, budget: float) -> list[Family]:
        self._plan(budget)  # now, so that its work is not counted as sampling
        return [Family({"speedup": budget})]

    def forget(self, budget: float) -> None:
        self._file(budget).unlink(missing_ok=True)
        self._plan.cache_clear()

    def _make_plan(self, speedup: float) -> Plan:
        path = self._file(speedup)
        if path.exists():
            return Plan.load(path)
        arena = self.arena
        if self.name == TUNED:
            calls = len(arena.calibration)
            plan = ditcache.tune(
                arena.compiled, arena.calibrate, arena.profile, speedup=speedup, samples=calls
            )
            ditcache.remove(arena.compiled)
        else:
            plan = arena.profile.plan(speedup=speedup, policy=self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        plan.save(path)
        return plan

    def _file(self, speedup: float) -> Path:
        return self.arena.folder / "plans" / f"{self.name}-{speedup:g}x.plan.json"


class Published(Planned):
    """A published policy of the zoo, in ditcache's runtime."""

    def families(self, budget: float) -> list[Family]:
        found = ZOO[self.name]
        return [Family({}, found.option, found.values)]

    def plan(self, knobs: Knobs) -> Plan:
        try:
            return self.arena.profile.plan(policy=self.name, **knobs)
        except PlanError as error:
            raise DoesNotApply(str(error)) from error


class FewerSteps(Contestant):
    """The same model on fewer steps, by Euler's or a two-step solver."""

    kind = "baseline"

    def prepare(self) -> None:
        if SOLVERS[self.name] not in self.arena.workload.solvers:
            raise DoesNotApply("the model's own solver is a multistep one already")

    def families(self, budget: float) -> list[Family]:
        return [Family({"steps": int(self.arena.setting.steps / budget)})]

    def sample(self, knobs: Knobs, batch: Batch) -> Tensor:
        workload = self.arena.workload
        solver = SOLVERS[self.name]
        return workload.sample(workload.denoiser, batch, knobs["steps"], solver=solver)

    def about(self, knobs: Knobs) -> dict[str, Any]:
        return {"computed_steps": knobs["steps"]}
