"""What a user calls around a compiled model: calibrate, tune, apply, remove, reset, summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..passes.budget import check_budget
from ..passes.plan_format import Plan
from ..passes.profile import Profile, ProfileError
from . import pipelines, shortcut
from .profiling import make_profile
from .recorder import SKETCH_WIDTH
from .session import Session, session_of
from .stats import Summary
from .summary import summary_of
from .tune import Tuner, collecting, final_of, run_one, tune_plan
from .tune_parts import best_part

_KINDS = ("denoiser", "block", "branch", "deep")
_HOW = 'compile it first: model = torch.compile(model, backend="ditcache")'


def calibrate(
    model: torch.nn.Module,
    generate: Callable[[int], Any],
    samples: int = 8,
    *,
    regions: Iterable[str] = ("denoiser",),
    guidance: float | None = None,
    exact: bool = False,
    width: int = SKETCH_WIDTH,
) -> Profile:
    """Record `samples` uncached generations and give their profile.

    `generate(i)` runs the caller's own loop or pipeline once, with a prompt and seed of its own
    choosing for sample i. `regions` are what to record: "denoiser" is what a plan needs; "block"
    and "branch" (all of that kind) are for the stability map; a policy of the zoo may need
    selectors, such as "blocks[:] delta". `guidance` overrides the scale measured from the recorded
    latents. `width` is how many numbers are kept of each sample's output at a step; `exact` keeps
    whole outputs instead (memory: all outputs of a generation in fp32). The model's plans are left
    as they were.

    Raises ProfileError if generate never called the compiled model, if generations differ in
    grid or shape, if an output is not finite, or for a region that does not exist; ValueError for
    samples or width below 1.
    """
    _at_least_one("calibrate", "samples", samples)
    _at_least_one("calibrate", "width", width)
    if not callable(generate):
        raise TypeError(
            f"expected generate, a function of a sample's index, got {type(generate).__name__}"
        )
    pipelines.install()
    session = _made(model)
    named = (regions,) if isinstance(regions, str) else regions
    kinds = tuple(dict.fromkeys(("denoiser", *named)))
    with collecting(session, width=0 if exact else width, kinds=kinds) as recordings:
        for i in range(samples):
            run_one(session, generate, i)
    profile = make_profile(
        recordings, session.signature or "", guidance=guidance, macs=session.macs or None
    )
    _check_recorded(profile, kinds)
    profile = replace(profile, outline=session.outline)
    reference = profile.reference
    return profile if reference is None else replace(profile, reference=reference.called(samples))


def tune(
    model: torch.nn.Module,
    generate: Callable[[int], Any],
    profile: Profile | None = None,
    *,
    speedup: float | None = None,
    computed_steps: int | None = None,
    max_error: float | None = None,
    samples: int = 8,
    candidates: int = 8,
    granularity: str = "denoiser",
) -> Plan:
    """Choose a plan in closed loop: run the best candidates, fit them to what they do, keep one.

    `generate(i)` runs the caller's own loop once, sample i with the same prompt and seed each time.
    The calibration generations are replayed under `candidates` plans, in rounds: each measures the
    error of the final samples to the uncached ones, keeps the better half and refits their weights
    to the course that they took. With 8 candidates that is 8 times `samples` generations under a
    plan, the replays that `chosen` tells; more for other parts of the model, and again for each
    number of steps that is tried to keep `max_error`. `profile` comes from `calibrate` with the
    same `generate` (else `samples` uncached generations are recorded first; so also for a profile
    from a file, which holds no samples).

    The final samples are taken from the recorded latents, whose last update is inferred. Where the
    sampler's update cannot be told from them (stochastic or multi-step samplers) what `generate`
    returns is compared: a tensor, an array, pictures, or an object with `images` or `frames`.
    Weights are then not refitted, and Taylor's and Lagrange's forecasts are among the candidates.

    Budget as in `Profile.plan`; `max_error` is kept by the measured error. The plan says in
    `expected_error` what was measured (relative rms over the replayed samples) and in `chosen` how.

    `granularity` is what to forecast: the whole "denoiser", or "auto" to try that also against
    parts of it (block runs, single blocks, residual branches, a UNet's deep part) that save as many
    MACs, and keep what was measured best.

    Raises PlanError for a budget out of reach, or if nothing could be measured; ProfileError as
    `calibrate` does, or if the profile is of another model.
    """
    check_budget(speedup=speedup, computed_steps=computed_steps, max_error=max_error)
    _at_least_one("tune", "candidates", candidates)
    if granularity not in ("denoiser", "auto"):
        raise ValueError(f"granularity must be 'denoiser' or 'auto', got {granularity!r}")
    session = _made(model)
    _check_of_model(_profile(profile), session.signature)
    finals: list[Any] | None = None
    if profile is None or profile.reference is None:
        given = profile
        profile, finals = _recorded(model, generate, samples)
        _check_of_model(given, profile.signature)
    calls = samples if profile.reference is None else profile.reference.calls
    return tune_plan(
        Tuner(session, generate, profile, calls, finals),
        speedup=speedup,
        computed_steps=computed_steps,
        max_error=max_error,
        candidates=candidates,
        finer=best_part if granularity == "auto" else None,
    )


def apply(model: torch.nn.Module, plan: Plan | str | Path) -> torch.nn.Module:
    """Run the compiled model under this plan from its next generation on; gives the model.

    Raises PlanError for a file that is no sound plan, or if the plan is for another model (when the
    model has been compiled; else at its first call, which then computes in full and says so).
    """
    wanted = _plan(plan)
    _made(model).adopt(wanted)
    return model


def remove(model: torch.nn.Module) -> torch.nn.Module:
    """Stop caching: drop the plan and compute every step in full. Gives the model.

    `apply` turns caching on again.
    """
    session = _session(model)
    shortcut.uninstall(model)
    session.generations.end_all()
    session.plans = []
    session.enabled = False
    return model


def reset(model: torch.nn.Module) -> torch.nn.Module:
    """Forget slots, hoisted values, compiled variants and counters; plans stay. Gives the model.

    Needed where weights were changed in a way that PyTorch does not count, such as through
    `.data`, and the change is to show before the next generation begins.
    """
    session = _session(model)
    session.generations.end_all()
    session.clock.restart()
    session.stats.reset()
    for executor in session.executors:
        executor.forget_programs()
    return model


def summary(model: torch.nn.Module) -> Summary:
    """What ran so far: calls computed and forecast, MACs, slot bytes, fallbacks and why.

    `str()` of it is a table. Raises ValueError if the model is not compiled by ditcache.
    """
    return summary_of(_session(model))


def _at_least_one(function: str, argument: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{function} needs {argument} >= 1, a whole number, got {value!r}")


def _made(model: torch.nn.Module) -> Session:
    session = session_of(_module(model), create=True)
    assert session is not None
    return session


def _check_recorded(profile: Profile, asked: Iterable[str]) -> None:
    """Raise ProfileError for a region that does not exist; a kind or role may have none."""
    for name in asked:
        may_lack = name.removesuffix(" delta") in _KINDS or "[" in name
        if not may_lack and profile.region(name) is None:
            raise ProfileError(
                f"regions: this model has no region {name!r}; expected {', '.join(_KINDS)}, a "
                "selector such as blocks[1:-1], or a name that ditcache-opt --stats lists"
            )


def _recorded(
    model: torch.nn.Module, generate: Callable[[int], Any], samples: int
) -> tuple[Profile, list[Any] | None]:
    """A new profile, and what `generate` returned where only that can be compared."""
    returned: list[Any] = []
    profile = calibrate(model, lambda i: returned.append(generate(i)), samples)
    known = profile.reference is not None
    return profile, None if known else [final_of(value) for value in returned]


def _check_of_model(profile: Profile | None, signature: str | None) -> None:
    """Raise ProfileError for a profile of another model; a signature not yet known fits any."""
    if profile is not None and signature is not None and profile.signature != signature:
        raise ProfileError(
            f"the profile is of model {profile.signature}, this model is {signature}; "
            "calibrate this model"
        )


def _plan(given: object) -> Plan:
    if isinstance(given, Plan):
        return given
    if isinstance(given, (str, Path)):
        return Plan.load(given)
    raise TypeError(f"expected a Plan or the path of one, got {type(given).__name__}")


def _profile(given: object) -> Profile | None:
    if given is None or isinstance(given, Profile):
        return given
    raise TypeError(
        f"expected a Profile, got {type(given).__name__}; Profile.load reads one from a file"
    )


def _module(model: object) -> torch.nn.Module:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"expected the compiled model, a torch.nn.Module, got {type(model).__name__}; "
            "if a function was compiled, give the module that it calls"
        )
    return model


def _session(model: torch.nn.Module) -> Session:
    session = session_of(_module(model))
    if session is None:
        raise ValueError(f"this {type(model).__name__} is not compiled by ditcache; {_HOW}")
    return session
