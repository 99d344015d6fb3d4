"""The plan: which steps compute, and the weights that stand in for the others.

A plan is what the runtime needs and nothing more: no tensors of a model, no code. It is stored as
indented JSON with one row of weights per line, so that two plans can be compared by eye or diff.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .atomic_file import write_atomically
from .checks import Rows, from_low_rank

if TYPE_CHECKING:
    from .frontier import Frontier

FORMAT = "ditcache.plan"
VERSION = 2
PLAIN = 1
"""Version of a plan that needs nothing newer: it is written as such, for older readers."""
WHAT = ("output", "delta")
REFERENCES = ("previous", "computed")

T = TypeVar("T")


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


@dataclass(frozen=True)
class Plan:
    """Schedules for the regions of one model on one grid of timesteps.

    `timesteps` are as the model sees them, strictly monotone. `expected_error` is the predicted
    relative rms error of the final sample (`error_diffusion.score`), None if there was no profile.
    `solver` says where the sampler's weights came from: "grid", "measured" or "impulse:<class>".
    `shape` and `dtype` are those of the denoiser's output, None if it was not recorded. `chosen`
    says how the plan was picked where its error was measured (`ditcache.tune`), not predicted.

    What it was solved from travels with it in short: `sampler` [T], the sampler's weights, `basis`
    [T, R], whose B B' is the Gram matrix of the outputs, and `checks` [n, 1 + K], for each computed
    step of the first region the rms residual of its forecast and that forecast's weights
    (`passes.checks`). Any of them may be missing; the guard and `frontier` then have nothing to
    go by.
    """

    signature: str
    timesteps: tuple[float, ...]
    regions: tuple[RegionSchedule, ...]
    policy: str
    expected_error: float | None = None
    solver: str = "grid"
    guidance: float | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    chosen: str | None = None
    rule: DecisionRule | None = None
    sampler: tuple[float, ...] | None = None
    basis: Rows | None = None
    checks: Rows | None = None

    @property
    def computed_steps(self) -> int:
        """Number of steps at which the first region (mostly the denoiser) computes.

        With a rule that decides by data, those that compute whatever it says.
        """
        return len(self.regions[0].computed)

    @property
    def macs_reduction(self) -> float:
        """Steps over computed steps of the first region: the most a plan on it can save."""
        return len(self.timesteps) / self.computed_steps

    @cached_property
    def form(self) -> tuple[object, ...]:
        """All of a plan that shapes its compiled code: two that differ in weights alone share it.

        Regions with their history, what is kept of them, which are forecast together at some step,
        and the rule that decides.
        """
        hits = [set(region.computed) for region in self.regions]
        modes = {tuple(t in h for h in hits) for t in range(len(self.timesteps))}
        regions = tuple((r.region, r.history, r.what) for r in self.regions)
        return regions, frozenset(modes), self.rule

    def validate(self) -> Plan:
        """Check every rule that a runtime relies on and return the plan itself.

        Raises `PlanError` naming the first rule broken: rows cover the grid exactly (V11), a
        forecast never needs more outputs than were computed before it (V3), all numbers finite, a
        strictly monotone grid, step 0 computes, regions named once.
        """
        steps = len(self.timesteps)
        _require(steps >= 1, "V11: a plan needs at least one timestep")
        _require(bool(self.regions), "V11: a plan needs at least one region")
        _require(is_monotone(self.timesteps), "V11: timesteps must be finite and strictly monotone")
        for value, name in ((self.expected_error, "expected_error"), (self.guidance, "guidance")):
            _require(value is None or math.isfinite(value), f"{name} must be finite, got {value}")
        names = [region.region for region in self.regions]
        _require(len(set(names)) == len(names), f"V4: a region is scheduled twice in {names}")
        for region in self.regions:
            _check_region(region, steps)
        if self.rule is not None:
            _check_rule(self.rule, self.regions)
        _check_evidence(self)
        return self

    def frontier(self, policy: str = "edf") -> Frontier:
        """What other budgets would cost on the same grid: predicted error of each.

        Raises `PlanError` if the plan does not say what it was solved from.
        """
        from .frontier import frontier_of

        if self.basis is None or self.sampler is None:
            raise PlanError("this plan was not solved from a profile, so nothing can be predicted")
        return frontier_of(from_low_rank(self.basis), self.timesteps, self.sampler, policy)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Validate and write to `path` as JSON, replacing it as a whole."""
        write_atomically(path, self.validate().to_json().encode())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read and validate a plan; `PlanError` if the file is not a sound plan of this version."""
        try:
            text = Path(path).read_bytes().decode()
        except FileNotFoundError:
            raise PlanError(f"{path}: no such plan file") from None
        except UnicodeDecodeError:
            raise PlanError(f"{path}: not a plan (not text); expected {FORMAT} JSON") from None
        try:
            return Plan.from_json(text)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None

    def to_json(self) -> str:
        """Indented JSON, one line for each row of weights and for each list of numbers."""
        newer = self.rule is not None or any(
            r.what != "output" or "[" in r.region or "+" in r.region for r in self.regions
        )
        top: dict[str, Any] = {"format": FORMAT, "version": VERSION if newer else PLAIN}
        left = {"regions"} | (set[str]() if newer else {"rule"})
        top |= {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left}
        if self.rule is not None:
            top["rule"] = asdict(self.rule) | {"options": dict(self.rule.options)}
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in top.items()]
        blocks: list[str] = []
        for region in self.regions:
            inner = [
                f"      {json.dumps(f.name)}: {json.dumps(getattr(region, f.name))},"
                for f in fields(region)
                if f.name != "weights" and (newer or f.name != "what")
            ]
            table = ",\n".join(f"        {json.dumps(row)}" for row in region.weights)
            inner.append(f'      "weights": [\n{table}\n      ]')
            blocks.append("    {\n" + "\n".join(inner) + "\n    }")
        lines.append('  "regions": [\n' + ",\n".join(blocks) + "\n  ]")
        return "{\n" + "\n".join(lines) + "\n}\n"

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read what `to_json` wrote and validate it; raises `PlanError`."""
        try:
            data: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(
                f"cut short or not JSON (line {error.lineno}: {error.msg}); make the plan again"
            ) from None
        if not isinstance(data, dict) or cast(dict[str, Any], data).get("format") != FORMAT:
            raise PlanError(f'not a plan: expected JSON with "format": "{FORMAT}"')
        top = cast(dict[str, Any], data)
        if top.get("version") not in (PLAIN, VERSION):
            raise PlanError(
                f"plan version {top.get('version')!r}, this ditcache reads {PLAIN} and {VERSION}; "
                "make the plan again from its profile"
            )
        shape = _optional(top, "shape", lambda v: _tuple(v, _integer))
        return Plan(
            signature=_field(top, "signature", _string),
            timesteps=_field(top, "timesteps", lambda v: _tuple(v, _number)),
            regions=_field(top, "regions", lambda v: _tuple(v, _region)),
            policy=_field(top, "policy", _string),
            expected_error=_optional(top, "expected_error", _number),
            solver=_field(top, "solver", _string),
            guidance=_optional(top, "guidance", _number),
            shape=shape,
            dtype=_optional(top, "dtype", _string),
            chosen=_optional(top, "chosen", _string),
            rule=_optional(top, "rule", _rule),
            sampler=_optional(top, "sampler", lambda v: _tuple(v, _number)),
            basis=_optional(top, "basis", _rows),
            checks=_optional(top, "checks", _rows),
        ).validate()


def _check_rule(rule: DecisionRule, regions: tuple[RegionSchedule, ...]) -> None:
    _require(bool(rule.probes), f"rule {rule.policy!r} needs at least one probe")
    for probe in rule.probes:
        _require(
            probe.reference in REFERENCES,
            f"a probe's reference must be one of {', '.join(REFERENCES)}, got {probe.reference!r}",
        )
    _require(
        all(0 <= rule.order < r.history for r in regions),
        f"rule {rule.policy!r} forecasts with order {rule.order}, which needs a history of "
        f"{rule.order + 1}",
    )


def _check_region(region: RegionSchedule, steps: int) -> None:
    where, computed = f"region {region.region!r}", region.computed
    _require(
        region.what in WHAT, f"{where}: what must be one of {', '.join(WHAT)}, got {region.what!r}"
    )
    _require(region.history >= 1, f"{where}: history must be at least 1, got {region.history}")
    _require(
        len(region.weights) == steps,
        f"V11: {where} has {len(region.weights)} rows of weights for {steps} timesteps",
    )
    _require(
        bool(computed)
        and computed[0] == 0
        and computed[-1] < steps
        and all(a < b for a, b in pairwise(computed)),
        f"V3: {where}: computed steps must increase from 0 to at most {steps - 1}, got {computed}",
    )
    done, hits = 0, set(computed)
    for step, row in enumerate(region.weights):
        _require(
            len(row) == region.history,
            f"V11: {where} step {step} has {len(row)} weights, history is {region.history}",
        )
        _require(
            all(math.isfinite(w) for w in row),
            f"{where} step {step} has a weight not finite: {row}",
        )
        if step in hits:
            _require(not any(row), f"V11: {where} step {step} computes but has weights {row}")
            done += 1
        else:
            needed = max((k + 1 for k, w in enumerate(row) if w), default=0)
            _require(
                needed <= done,
                f"V3: {where} step {step} needs {needed} computed outputs, only {done} precede",
            )


def _check_evidence(plan: Plan) -> None:
    steps, first = len(plan.timesteps), plan.regions[0]
    sampler = None if plan.sampler is None else (plan.sampler,)
    rank = len(plan.basis[0]) if plan.basis else 0
    tables: tuple[tuple[str, Rows | None, int, int], ...] = (
        ("sampler", sampler, 1, steps),
        ("basis", plan.basis, steps, rank),
        ("checks", plan.checks, len(first.computed), first.history + 1),
    )
    for name, rows, height, width in tables:
        sound = rows is None or (
            len(rows) == height
            and all(len(row) == width and all(map(math.isfinite, row)) for row in rows)
        )
        _require(sound, f"{name} must be {height} x {width} finite numbers; make the plan again")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise PlanError(message)


def _field(data: dict[str, Any], name: str, read: Callable[[Any], T]) -> T:
    if name not in data:
        raise PlanError(f'field "{name}" is missing; make the plan again')
    try:
        return read(data[name])
    except (TypeError, ValueError) as error:
        raise PlanError(f'field "{name}": {error}') from None


def _optional(data: dict[str, Any], name: str, read: Callable[[Any], T]) -> T | None:
    return None if data.get(name) is None else _field(data, name, read)


def _tuple(value: Any, read: Callable[[Any], T]) -> tuple[T, ...]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {type(value).__name__}")
    return tuple(read(item) for item in cast(list[Any], value))


def _rows(value: Any) -> Rows:
    return _tuple(value, lambda row: _tuple(row, _number))


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected an integer, got {value!r}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _region(value: Any) -> RegionSchedule:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object for a region, got {type(value).__name__}")
    data = cast(dict[str, Any], value)
    return RegionSchedule(
        region=_field(data, "region", _string),
        computed=_field(data, "computed", lambda v: _tuple(v, _integer)),
        weights=_field(data, "weights", lambda v: _tuple(v, lambda row: _tuple(row, _number))),
        history=_field(data, "history", _integer),
        forecaster=_field(data, "forecaster", _string),
        schedule=_field(data, "schedule", _string),
        what=_field(data, "what", _string) if "what" in data else "output",
    )


def _rule(value: Any) -> DecisionRule:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object for a rule, got {type(value).__name__}")
    data = cast(dict[str, Any], value)
    options = _field(data, "options", dict[str, Any])
    return DecisionRule(
        policy=_field(data, "policy", _string),
        options=tuple(
            (key, tuple(v) if isinstance(v, list) else v) for key, v in sorted(options.items())
        ),
        probes=_field(data, "probes", lambda v: _tuple(v, lambda probe: ProbePoint(**probe))),
        order=_field(data, "order", _integer),
    )
