"""What a policy is: a small frozen dataclass that says which regions to skip at which steps.

A static policy gives a schedule for each of its regions. A dynamic one also says what to look at
(`probes`) and how to judge it (`begin`); its schedules then hold the steps that compute whatever is
seen.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from ..error_diffusion import Array, Forecaster
from ..forecasters import Taylor
from ..guidance import conditional
from ..outline import Outline
from ..plan_format import DecisionRule, Plan, PlanError, ProbePoint, RegionSchedule
from ..plan_parts import DENOISER
from ..portfolio import guided_gram
from ..profile import Profile
from ..target_grid import Target, onto, solver_weights

BRANCHES = "attention[:]+cross-attention[:]+mlp[:]"
"""Every residual branch of every block: what layer-level methods cache."""
CHAIN = "blocks[:]"
REUSE = Taylor(0)


def option(default: Any, least: float) -> Any:
    """A numeric field of a policy, with the least value that makes sense."""
    return field(default=default, metadata={"least": least})


class Reading(NamedTuple):
    """What a probe says: mean |value - reference| and mean |reference|, as numbers on the host."""

    distance: float
    size: float

    @property
    def relative(self) -> float:
        """The relative L1 distance; infinite from a reference of zeros."""
        return self.distance / self.size if self.size else float("inf")


class Limit(NamedTuple):
    """A rule that a device can follow: compute unless the relative distance is below `limit`.

    With `accumulate` it is the sum of the distances since the last computed step that counts.
    """

    limit: float
    accumulate: bool


class Decider(Protocol):
    """A dynamic policy at work in one generation and one guidance branch."""

    def skips(self, step: int, readings: Sequence[Reading]) -> bool:
        """Whether to forecast `step`; asked once for each step that the plan leaves open.

        `readings` are those of the probes that come before the decision, in their order.
        """
        ...

    def computed(self, step: int, moved: Sequence[Reading | None]) -> None:
        """Hear that `step` was computed, because the plan or the decider said so.

        `moved` are the measured probes' readings, from the computed step before to this one; None
        where there was none before. They are read with the next decision, in one wait.
        """
        ...


@dataclass(frozen=True)
class Subject:
    """What a policy plans for: a model's outline, a grid, and measurements where there are any."""

    signature: str
    timesteps: tuple[float, ...]
    outline: Outline
    profile: Profile | None = None
    target: Target | None = None
    solver: Array | None = None
    guidance: float | None = None

    @property
    def steps(self) -> int:
        """Number of steps of the grid."""
        return len(self.timesteps)

    def schedule(
        self,
        region: str,
        computed: Iterable[int],
        forecaster: Forecaster = REUSE,
        *,
        what: str = "output",
        name: str = "",
        gram: Array | None = None,
    ) -> RegionSchedule:
        """One region's schedule, with the forecaster's weights on it; step 0 always computes."""
        chosen = tuple(sorted({0, *computed}))
        c = self.solver if self.solver is not None else np.ones(self.steps)
        rows = forecaster.rows(
            chosen, np.asarray(self.timesteps), c, np.eye(self.steps) if gram is None else gram
        )
        weights = tuple(tuple(float(w) for w in row) for row in rows)
        kept = forecaster.history
        return RegionSchedule(region, chosen, weights, kept, forecaster.name, name, what)

    def gram(self, region: str) -> Array:
        """Measured inner products [T, T] of a recorded region; PlanError if it was not recorded."""
        found = self.profile.region(region) if self.profile is not None else None
        if found is None or self.profile is None:
            raise PlanError(
                f"this policy needs measurements of {region!r}: give a profile that was recorded "
                f"with ditcache.calibrate(..., regions=({region!r},))"
            )
        if self.target is not None and self.target.before + self.target.after:
            raise PlanError("the grid reaches beyond the calibrated one; calibrate on this grid")
        own = guided_gram(found.gram, self.guidance, conditional(self.profile.branches))
        return own if self.target is None else self.target.gram(own)

    def needs(self, what: str, blocks: int = 1) -> None:
        """Raise PlanError unless the model has what a policy is about: "blocks", "deep", a role."""
        count = self.outline.blocks
        if what == "blocks" and count < blocks:
            raise PlanError(f"this policy needs at least {blocks} blocks, this model has {count}")
        has = {"blocks": True, "deep": self.outline.deep}
        has |= dict.fromkeys(self.outline.roles, True) | {"branches": bool(self.outline.roles)}
        if not has.get(what):
            known = ", ".join(self.outline.roles) or "no branches"
            raise PlanError(
                f"this policy needs {what}, which this model lacks: {count} blocks, "
                f"{known}, {'a' if self.outline.deep else 'no'} deep part"
            )


@dataclass(frozen=True)
class Policy:
    """One method, with its options as fields and its publication's defaults.

    `name` is what the user says, `source` where it is published, `records` the regions whose
    measurements it needs besides the denoiser's.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    records: ClassVar[tuple[str, ...]] = ()
    measured: ClassVar[bool] = False

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in fields(self):
            _check(self.name, f.name, getattr(self, f.name), hints[f.name], f.metadata.get("least"))

    def schedules(self, on: Subject) -> Sequence[RegionSchedule]:
        """The regions and what each does at every step; raises PlanError if the model lacks one."""
        raise NotImplementedError

    def plan(self, on: Subject) -> Plan:
        """The plan for one model and grid, and for outputs of the shape that was recorded."""
        output = on.profile.region(DENOISER) if on.profile is not None else None
        return Plan(
            signature=on.signature,
            timesteps=on.timesteps,
            regions=tuple(self.schedules(on)),
            policy=self.name,
            guidance=on.guidance,
            shape=output.shape if output is not None else None,
            dtype=output.dtype if output is not None else None,
            rule=self.rule(),
        ).validate()

    def rule(self) -> DecisionRule | None:
        """What is decided at run time; nothing for a static policy."""
        return None


@dataclass(frozen=True)
class DynamicPolicy(Policy):
    """A method that looks at data: the host reads the probes once in a step and branch."""

    probes: ClassVar[tuple[ProbePoint, ...]]

    def points(self) -> tuple[ProbePoint, ...]:
        """The probes, where they depend on options."""
        return self.probes

    @property
    def taylor(self) -> int:
        """Order of TaylorSeer's forecast over the steps that did compute; 0 is reuse."""
        return 0

    def limit(self) -> Limit | None:
        """The rule as a limit on the one probe's distance; None where it is more than that."""
        return None

    def begin(self, steps: int) -> Decider:
        """A decider for one generation of `steps` steps and one branch."""
        raise NotImplementedError

    def rule(self) -> DecisionRule:
        """The policy by name, so that a plan file can hold it."""
        options = tuple(sorted((f.name, getattr(self, f.name)) for f in fields(self)))
        return DecisionRule(self.name, options, self.points(), self.taylor)


def subject(
    profile: Profile,
    *,
    timesteps: Sequence[float] | None = None,
    scheduler: Any = None,
    guidance: float | None = None,
) -> Subject:
    """What there is to plan for, from a profile."""
    target = onto(profile, timesteps)
    c, _ = solver_weights(profile, target, scheduler)
    return Subject(
        signature=profile.signature,
        timesteps=tuple(float(t) for t in target.timesteps),
        outline=profile.outline or Outline(0),
        profile=profile,
        target=target,
        solver=c,
        guidance=profile.guidance if guidance is None else guidance,
    )


def every(steps: int, interval: int, first: int = 1) -> tuple[int, ...]:
    """`first` steps from the start, then every `interval`-th after the last of them."""
    start = min(max(first, 1), steps)
    return (*range(start - 1), *range(start - 1, steps, interval))


def _check(policy: str, name: str, value: Any, kind: Any, least: float | None) -> None:
    kinds = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}.get(kind, (object,))
    wrong = not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool)
    if wrong or (least is not None and isinstance(value, (int, float)) and not value >= least):
        wanted = getattr(kind, "__name__", str(kind))
        bound = "" if least is None else f", at least {least:g}"
        raise PlanError(f"policy {policy!r}: {name} must be of type {wanted}{bound}, got {value!r}")
