"""C2, C3, C5 and exact: ditcache itself, on the unchanged pipeline."""

from __future__ import annotations

from typing import Any

import ditcache
import torch
from ditcache import Plan

from ..subjects import Subject
from .base import Method, MethodError, Setup, Stage

GENERATIONS = 8


class Caching(Method):
    """Steps forecast by a plan for this speedup; without one, only what is exact."""

    stage = Stage.COMPILER
    changes = frozenset({"which steps are computed"})

    def __init__(self, name: str, speedup: float | None = None) -> None:
        self.name = name
        self.speedup = speedup
        self.title = f"ditcache, {speedup:g}x" if speedup else "ditcache, exact"
        self.models: dict[str, Any] = {}
        self.plan: Plan | None = None

    def prepare(self, subject: Subject, setup: Setup) -> None:
        if len(subject.denoisers) > 1:
            raise MethodError(f"{self.name} plans for one denoiser; this pipeline has two")
        options: dict[str, Any] = {"inner": setup.inner, "remember": False}
        if self.speedup is None:
            options["policy"] = "exact"
        for name, module in subject.denoisers.items():
            compiled = torch.compile(module, backend="ditcache", options=options)
            setattr(subject.pipeline, name, compiled)
            self.models[name] = compiled

    def finish(self, subject: Subject, setup: Setup) -> None:
        (model,) = self.models.values()
        if self.speedup is None:
            ditcache.reset(model)
            return
        samples = subject.calibration or subject.samples[-1:]
        with setup.clocked("calibrate"):
            profile = ditcache.calibrate(
                model,
                lambda i: subject.generate(samples[i % len(samples)]),
                min(GENERATIONS, max(1, len(samples))),
            )
        with setup.clocked("plan"):
            self.plan = profile.plan(speedup=self.speedup)
        ditcache.apply(model, self.plan)
        subject.generate(samples[0])  # compiles what only a plan needs
        ditcache.reset(model)

    def macs(self, subject: Subject) -> tuple[float, float] | None:
        (model,) = self.models.values()
        said = ditcache.summary(model)
        return said.macs, said.macs_uncached

    def facts(self, subject: Subject) -> dict[str, object]:
        (model,) = self.models.values()
        said = ditcache.summary(model)
        found: dict[str, object] = {
            "fallbacks": dict(said.fallbacks),
            "not_cached": list(said.uncached),
            "calls": said.calls,
            "forecast": said.forecast,
            "slot_bytes": said.slot_bytes,
        }
        if self.plan is not None:
            region = self.plan.regions[0]
            found |= {
                "plan": list(region.computed),
                "steps": len(self.plan.timesteps),
                "schedule": region.schedule,
                "forecaster": region.forecaster,
                "expected_error": self.plan.expected_error,
            }
        return found
