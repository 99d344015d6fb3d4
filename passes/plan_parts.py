"""What a plan is made of: one region's schedule, the rule that decides by data, and its probes.

Each part is checked on its own here; what holds between them is checked in `plan_format`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

DENOISER = "denoiser"
"""Name of the region that is the whole model; where it was recorded, plans are made for it."""
WHAT = ("output", "delta")
REFERENCES = ("previous", "computed")


class PlanError(ValueError):
    """A plan that cannot be made, read or used; the message says what to do about it."""


def is_monotone(grid: Iterable[float]) -> bool:
    """Whether a grid is finite and strictly falling, or finite and strictly rising."""
    values = [float(t) for t in grid]
    steps = [b - a for a, b in pairwise(values)]
    finite = all(math.isfinite(t) for t in values)
    return finite and (all(s < 0 for s in steps) or all(s > 0 for s in steps))


@dataclass(frozen=True)
class RegionSchedule:
    """What one region does at each of T steps.

    `computed` holds the increasing indices of the steps that compute, 0 first. `weights` has T rows
    of `history` numbers; entry k multiplies the k-th newest computed output before that step. Rows
    of computed steps are zero. `forecaster` and `schedule` say how the rows came about.

    `region` is a region's name or a selector (`passes.selectors`): `blocks[1:-1]` is a run of
    blocks, `attention[:]` every attention branch, all under this one schedule. `what` is forecast:
    the region's "output", or the "delta" that it adds to its live-in.
    """

    region: str
    computed: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]
    history: int
    forecaster: str
    schedule: str
    what: str = "output"


@dataclass(frozen=True)
class ProbePoint:
    """A value that a decision at run time looks at, and what it is compared with.

    `value` is "latents", "output", "modulated" (what the first block's first matrix product reads)
    or "SELECTOR delta" (what a run of blocks added). `reference` is that value at the "previous"
    step or at the last "computed" one. A `measured` probe is not read before the decision: it tells
    how far the value moved between two computed steps.
    """

    value: str
    reference: str = "computed"
    measured: bool = False


@dataclass(frozen=True)
class DecisionRule:
    """Which steps to skip, decided by data: a policy of `passes.policies` and its options.

    The plan's `computed` steps always compute; all others ask the rule, once in each guidance
    branch. `options` are the policy's fields, in name order. With `order` above 0 the rows of
    weights are TaylorSeer's of that order over the steps that did compute, and the plan's own rows
    stand in where there is no other.
    """

    policy: str
    options: tuple[tuple[str, float | int | str | bool | tuple[float, ...]], ...]
    probes: tuple[ProbePoint, ...]
    order: int = 0


def check_region(region: RegionSchedule, steps: int) -> None:
    """Raise `PlanError` unless the schedule is sound on a grid of so many steps (V3, V11)."""
    where, computed = f"region {region.region!r}", region.computed
    require(
        region.what in WHAT, f"{where}: what must be one of {', '.join(WHAT)}, got {region.what!r}"
    )
    require(region.history >= 1, f"{where}: history must be at least 1, got {region.history}")
    require(
        len(region.weights) == steps,
        f"V11: {where} has {len(region.weights)} rows of weights for {steps} timesteps",
    )
    require(
        bool(computed)
        and computed[0] == 0
        and computed[-1] < steps
        and all(a < b for a, b in pairwise(computed)),
        f"V3: {where}: computed steps must increase from 0 to at most {steps - 1}, got {computed}",
    )
    done, hits = 0, set(computed)
    for step, row in enumerate(region.weights):
        require(
            len(row) == region.history,
            f"V11: {where} step {step} has {len(row)} weights, history is {region.history}",
        )
        require(
            all(math.isfinite(w) for w in row),
            f"{where} step {step} has a weight not finite: {row}",
        )
        if step in hits:
            require(not any(row), f"V11: {where} step {step} computes but has weights {row}")
            done += 1
        else:
            needed = max((k + 1 for k, w in enumerate(row) if w), default=0)
            require(
                needed <= done,
                f"V3: {where} step {step} needs {needed} computed outputs, only {done} precede",
            )


def check_rule(rule: DecisionRule, regions: Sequence[RegionSchedule]) -> None:
    """Raise `PlanError` unless the rule can decide about these regions."""
    require(bool(rule.probes), f"rule {rule.policy!r} needs at least one probe")
    for probe in rule.probes:
        require(
            probe.reference in REFERENCES,
            f"a probe's reference must be one of {', '.join(REFERENCES)}, got {probe.reference!r}",
        )
    require(
        all(0 <= rule.order < r.history for r in regions),
        f"rule {rule.policy!r} forecasts with order {rule.order}, which needs a history of "
        f"{rule.order + 1}",
    )


def require(holds: bool, message: str) -> None:
    """Raise `PlanError` with this message unless it holds."""
    if not holds:
        raise PlanError(message)
