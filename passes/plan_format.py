"""The plan: which steps compute, and the weights that stand in for the others.

A plan is what the runtime needs and nothing more: no tensors of a model, no code. It is stored as
indented JSON with one row of weights per line, so that two plans can be compared by eye or diff.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .atomic_file import write_atomically
from .checks import Rows, from_low_rank
from .plan_fields import (
    FieldError,
    integer,
    integers,
    items,
    matrix,
    number,
    numbers,
    optional,
    required,
    string,
    table,
)
from .plan_parts import (
    DecisionRule,
    PlanError,
    ProbePoint,
    RegionSchedule,
    check_region,
    check_rule,
    is_monotone,
    require,
)

if TYPE_CHECKING:
    from .frontier import Frontier

FORMAT = "ditcache.plan"
VERSION = 2
PLAIN = 1
"""Version of a plan that needs nothing newer: it is written as such, for older readers."""


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
    go by. `power` is the sample's mean square, where expected errors are relative to that and not
    to what the model adds (`Profile.power`).
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
    power: float | None = None

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
        require(steps >= 1, "V11: a plan needs at least one timestep")
        require(bool(self.regions), "V11: a plan needs at least one region")
        require(is_monotone(self.timesteps), "V11: timesteps must be finite and strictly monotone")
        for value, name in ((self.expected_error, "expected_error"), (self.guidance, "guidance")):
            require(value is None or math.isfinite(value), f"{name} must be finite, got {value}")
        sound = self.power is None or 0.0 < self.power < math.inf
        require(sound, f"power must be above 0 and finite, got {self.power}")
        names = [region.region for region in self.regions]
        require(len(set(names)) == len(names), f"V4: a region is scheduled twice in {names}")
        for region in self.regions:
            check_region(region, steps)
        if self.rule is not None:
            check_rule(self.rule, self.regions)
        _check_evidence(self)
        return self

    def frontier(self, policy: str = "edf") -> Frontier:
        """What other budgets would cost on the same grid: predicted error of each.

        Raises `PlanError` if the plan does not say what it was solved from.
        """
        from .frontier import frontier_of

        if self.basis is None or self.sampler is None:
            raise PlanError("this plan was not solved from a profile, so nothing can be predicted")
        return frontier_of(
            from_low_rank(self.basis), self.timesteps, self.sampler, policy, self.power
        )

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
        except IsADirectoryError:
            raise PlanError(f"{path}: a folder; expected a plan file") from None
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
        left |= {"power"} if self.power is None else set[str]()
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
        try:
            return _plan(top).validate()
        except FieldError as error:
            raise PlanError(f"{error}") from None


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
        require(sound, f"{name} must be {height} x {width} finite numbers; make the plan again")


def _plan(data: dict[str, Any]) -> Plan:
    return Plan(
        signature=required(data, "signature", string),
        timesteps=required(data, "timesteps", numbers),
        regions=required(data, "regions", lambda v: items(v, _region)),
        policy=required(data, "policy", string),
        expected_error=optional(data, "expected_error", number),
        solver=required(data, "solver", string),
        guidance=optional(data, "guidance", number),
        shape=optional(data, "shape", integers),
        dtype=optional(data, "dtype", string),
        chosen=optional(data, "chosen", string),
        rule=optional(data, "rule", _rule),
        sampler=optional(data, "sampler", numbers),
        basis=optional(data, "basis", matrix),
        checks=optional(data, "checks", matrix),
        power=optional(data, "power", number),
    )


def _region(value: Any) -> RegionSchedule:
    data = table(value, "region")
    return RegionSchedule(
        region=required(data, "region", string),
        computed=required(data, "computed", integers),
        weights=required(data, "weights", matrix),
        history=required(data, "history", integer),
        forecaster=required(data, "forecaster", string),
        schedule=required(data, "schedule", string),
        what=required(data, "what", string) if "what" in data else "output",
    )


def _rule(value: Any) -> DecisionRule:
    data = table(value, "rule")
    options = required(data, "options", dict[str, Any])
    return DecisionRule(
        policy=required(data, "policy", string),
        options=tuple(
            (key, tuple(v) if isinstance(v, list) else v) for key, v in sorted(options.items())
        ),
        probes=required(data, "probes", lambda v: items(v, lambda p: ProbePoint(**p))),
        order=required(data, "order", integer),
    )
