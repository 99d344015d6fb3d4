"""What a user calls around a compiled model: calibrate, apply, remove, reset, summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ..passes.plan_format import Plan
from ..passes.profile import Profile
from . import pipelines
from .recorder import SKETCH_WIDTH, make_profile
from .session import Session, session_of
from .stats import Summary

_HOW = 'compile it first: model = torch.compile(model, backend="ditcache")'


def calibrate(
    model: torch.nn.Module,
    generate: Callable[[int], Any],
    samples: int = 8,
    *,
    regions: Iterable[str] = ("denoiser",),
    guidance: float | None = None,
    exact: bool = False,
) -> Profile:
    """Record `samples` uncached generations and give their profile.

    `generate(i)` runs the caller's own loop or pipeline once, with a prompt and seed of its own
    choosing for sample i. `regions` are the region kinds to record: "denoiser" is what a plan
    needs; "block" and "branch" are for the stability map. `guidance` overrides the scale measured
    from the recorded latents. `exact` keeps whole outputs instead of sketches (memory: all
    outputs of a generation in fp32). The model's plans are left as they were.

    Raises ProfileError if generate never called the compiled model, if generations differ in
    grid or shape, or if an output is not finite; ValueError for samples < 1.
    """
    if samples < 1:
        raise ValueError(f"calibrate needs samples >= 1, got {samples}")
    pipelines.install()
    session = session_of(model, create=True)
    assert session is not None
    before = (session.enabled, session.record_kinds, session.sketch_width)
    session.end_all()
    session.clock.restart()
    session.enabled = True
    session.record_kinds = tuple(dict.fromkeys(("denoiser", *regions)))
    session.sketch_width = 0 if exact else SKETCH_WIDTH
    _rebuild(session, before[1])
    session.collected = collected = []
    try:
        for i in range(samples):
            generate(i)
            session.end_all()
            session.clock.restart()
        return make_profile(
            collected, session.signature or "", guidance=guidance, macs=session.macs or None
        )
    finally:
        session.end_all()
        session.clock.restart()
        session.collected = None
        recorded = session.record_kinds
        session.enabled, session.record_kinds, session.sketch_width = before
        _rebuild(session, recorded)


def apply(model: torch.nn.Module, plan: Plan | str | Path) -> torch.nn.Module:
    """Run the compiled model under this plan from its next generation on; gives the model.

    Raises PlanError if the plan is for another model (when the model has been compiled; else at
    its first call, which then computes in full and says so).
    """
    session = session_of(model, create=True)
    assert session is not None
    session.adopt(plan if isinstance(plan, Plan) else Plan.load(plan))
    return model


def remove(model: torch.nn.Module) -> torch.nn.Module:
    """Stop caching: the compiled model computes every step in full. `apply` turns it on again."""
    session = _session(model)
    session.end_all()
    session.plans = []
    session.enabled = False
    return model


def reset(model: torch.nn.Module) -> torch.nn.Module:
    """Forget slots, hoisted values and counters, e.g. after changing weights behind our back."""
    session = _session(model)
    session.end_all()
    session.clock.restart()
    session.stats.reset()
    for executor in session.executors:
        executor.forget_programs()
    return model


def summary(model: torch.nn.Module) -> Summary:
    """What ran so far: calls computed and forecast, MACs, slot bytes, fallbacks and why.

    Raises ValueError if the model is not compiled by ditcache.
    """
    return _session(model).summary()


def _session(model: torch.nn.Module) -> Session:
    session = session_of(model)
    if session is None:
        raise ValueError(f"this {type(model).__name__} is not compiled by ditcache; {_HOW}")
    return session


def _rebuild(session: Session, kinds: tuple[str, ...]) -> None:
    if kinds != session.record_kinds:
        for executor in session.executors:
            executor.forget_programs()
