"""The options of `torch.compile(..., backend="ditcache", options={...})`, checked."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from ..kernels.formats import FORMATS
from ..passes.classify_inputs import INPUT_ROLES
from ..passes.plan_format import Plan, PlanError
from ..passes.policies import ZOO, make
from ..passes.portfolio import POLICIES

EXACT_POLICIES = ("exact", "none")
ACTIONS = ("off", "warn", "densify", "compute", "recalibrate")
"""What the guard may do."""
# Keys that torch.compile itself reads; it may pass them on to a backend.
IGNORED = frozenset({"guard_filter_fn"})


class OptionError(ValueError):
    """An option that ditcache does not know or cannot use; says what was expected."""


@dataclass(frozen=True)
class Config:
    """How one compiled model is cached: the entries of `options=`.

    - `speedup`, `computed_steps`, `max_error`: the budget, one of them: steps over computed steps
      (2 where nothing is said), their number, or the predicted relative error of the final sample.
    - `plan`: a Plan or its path, in place of budget and recording.
    - `policy`: "edf" (the method), a baseline of `passes.portfolio.POLICIES`, one of the zoo
      (`passes.policies.ZOO`) with its own options beside it in place of a budget
      (`policy_options` here), "exact" (hoisting only, bit-identical) or "none" (off: the whole
      graph goes to `inner` as it was captured, until there is a plan).
    - `profile_generations`: how many generations are recorded before a plan is made by itself.
    - `remember`: keep self-made plans on disk in `cache_dir` (None: the user's cache folder).
    - `inner`: compiler of the parts, "inductor", "eager" or another name that torch.compile takes.
    - `inputs`: roles of inputs by name ({"x": "latents", "y": "condition"}) where names and shapes
      mislead.
    - `guidance`: the guidance scale, if the recorded calls cannot tell (None: measured).
    - `hoist_budget`: bytes for hoisted values (0: none is remembered); `slot_budget`: for slots
      (None: no bound).
    - `offload_beyond`: bytes of slots that stay on a CUDA device; the others lie in pinned host
      memory and are fetched ahead of their forecasts (None: all stay).
    - `slot_format`: how slots are stored, a name of `kernels.formats.FORMATS` (None: as the model
      gives them).
    - `shortcut`: answer skipped steps without Dynamo's guards (`runtime/shortcut.py`).
    - `guard`: what to do where the model changes much faster than in calibration: "off", "warn",
      "densify" (compute more of this generation), "compute" (all that is left of it) or
      "recalibrate" (record the next generations and plan anew).
    - `cuda_graphs`: on a CUDA device capture each variant and replay it; `graph_budget`: bytes for
      what captures hold (None: no bound).
    - `device_decisions`: policies that decide by data do so on the device where their rule is a
      limit on one distance (`passes/decided_step.py`).
    """

    speedup: float | None = None
    computed_steps: int | None = None
    max_error: float | None = None
    plan: Plan | None = None
    policy: str = "edf"
    policy_options: dict[str, Any] = field(default_factory=dict[str, Any])
    profile_generations: int = 2
    remember: bool = True
    cache_dir: str | None = None
    inner: str = "inductor"
    inputs: dict[str, str] = field(default_factory=dict[str, str])
    guidance: float | None = None
    hoist_budget: int = 256 * 2**20
    slot_budget: int | None = None
    offload_beyond: int | None = None
    slot_format: str | None = None
    shortcut: bool = True
    guard: str = "warn"
    cuda_graphs: bool = False
    graph_budget: int | None = None
    device_decisions: bool = False

    @property
    def budget(self) -> dict[str, float | int]:
        """The one budget that was chosen, as keyword arguments of `Profile.plan`."""
        if self.computed_steps is not None:
            return {"computed_steps": self.computed_steps}
        if self.max_error is not None:
            return {"max_error": self.max_error}
        return {"speedup": 2.0 if self.speedup is None else self.speedup}

    @property
    def request(self) -> dict[str, Any]:
        """Policy and budget, or policy and its options, as keyword arguments of `Profile.plan`."""
        return {"policy": self.policy, **(self.policy_options if self.of_zoo else self.budget)}

    @property
    def of_zoo(self) -> bool:
        """Whether the policy is a published one with options of its own."""
        return self.policy in ZOO

    @property
    def records(self) -> tuple[str, ...]:
        """The regions to record before planning."""
        return ("denoiser", *(ZOO[self.policy].records if self.of_zoo else ()))

    @property
    def recordings(self) -> int:
        """Generations to record before planning; one tells the grid where nothing is measured."""
        return 1 if self.of_zoo and not ZOO[self.policy].measured else self.profile_generations

    @property
    def profiles_itself(self) -> bool:
        """Whether the model records its first generations and then plans."""
        return self.plan is None and self.policy not in EXACT_POLICIES


def parse(options: Mapping[str, Any] | None) -> Config:
    """Options as given by the user to a Config; raises OptionError naming the first bad one.

    None leaves an option at its default. A plan by its path is read, which may raise PlanError.
    """
    given = {k: v for k, v in (options or {}).items() if k not in IGNORED and v is not None}
    _choice(given, "policy", (*POLICIES, *ZOO, *EXACT_POLICIES))
    policy = given.get("policy", "edf")
    own = [f.name for f in fields(ZOO[policy])] if policy in ZOO else []
    known = [f.name for f in fields(Config) if f.name != "policy_options"] + own
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise OptionError(f"unknown option {key!r}.{hint} Known: {', '.join(known)}")
    given["policy_options"] = {k: given.pop(k) for k in own if k in given}
    _check_values(given)
    _check_budget(given, policy)
    if isinstance(plan := given.get("plan"), (str, Path)):
        given["plan"] = Plan.load(plan)
    elif plan is not None and not isinstance(plan, Plan):
        raise OptionError(f"option 'plan' is {plan!r}; expected a Plan or the path of one")
    if "cache_dir" in given:
        given["cache_dir"] = str(given["cache_dir"])
    return Config(**given)


def _check_values(given: Mapping[str, Any]) -> None:
    """Each option by itself."""
    _number(given, "speedup", 1.0, "a factor of at least 1, e.g. 3.0")
    _number(given, "computed_steps", 1, "a whole number of steps, at least 1", whole=True)
    _number(given, "max_error", 0.0, "a relative error such as 0.01")
    _number(given, "guidance", -math.inf, "a guidance scale such as 3.5")
    wanted = "a whole number of generations, at least 1"
    _number(given, "profile_generations", 1, wanted, whole=True)
    for key in ("hoist_budget", "slot_budget", "offload_beyond", "graph_budget"):
        _number(given, key, 0, "a whole number of bytes", whole=True)
    for key in ("remember", "shortcut", "cuda_graphs", "device_decisions"):
        if not isinstance(given.get(key, True), bool):
            raise OptionError(f"option {key!r} is {given[key]!r}; expected True or False")
    _choice(given, "slot_format", tuple(FORMATS))
    _choice(given, "guard", ACTIONS)
    if not isinstance(folder := given.get("cache_dir", ""), (str, Path)):
        raise OptionError(f"option 'cache_dir' is {folder!r}; expected a folder")
    if (inner := given.get("inner", "inductor")) not in ("inductor", "eager"):
        from torch._dynamo.backends.registry import list_backends

        if inner == "ditcache" or inner not in list_backends(()):
            wanted = "inductor, eager or another backend of torch.compile"
            raise OptionError(f"option 'inner' is {inner!r}; expected {wanted}")
    inputs = given.get("inputs", {})
    if not isinstance(inputs, Mapping):
        raise OptionError(
            f"option 'inputs' is {inputs!r}; expected roles by name, as {{'x': 'latents'}}"
        )
    for name, role in cast(Mapping[Any, Any], inputs).items():
        if role not in INPUT_ROLES:
            raise OptionError(
                f"option 'inputs' gives {name!r} the role {role!r}; expected one of "
                f"{', '.join(INPUT_ROLES)}"
            )


def _check_budget(given: Mapping[str, Any], policy: str) -> None:
    """At most one budget, and none for a policy that has no use for it."""
    budgets = [k for k in ("speedup", "computed_steps", "max_error", "plan") if k in given]
    if len(budgets) > 1:
        raise OptionError(
            f"options {' and '.join(map(repr, budgets))} exclude each other; keep one"
        )
    if policy in ZOO:
        try:
            make(policy, given["policy_options"])
        except PlanError as wrong:
            raise OptionError(str(wrong)) from None
        if budgets:
            own = ", ".join(f.name for f in fields(ZOO[policy]))
            raise OptionError(
                f"policy {policy!r} has options of its own ({own}) in place of a budget; "
                f"drop {budgets[0]!r}"
            )
    if policy in EXACT_POLICIES and budgets:
        raise OptionError(
            f"option {budgets[0]!r} asks for skipped steps, but policy {policy!r} skips none; "
            "drop one of the two"
        )


def _choice(given: Mapping[str, Any], key: str, listed: tuple[str, ...]) -> None:
    if key in given and given[key] not in listed:
        raise OptionError(f"option {key!r} is {given[key]!r}; expected one of {', '.join(listed)}")


def _number(
    given: Mapping[str, Any], key: str, least: float, what: str, *, whole: bool = False
) -> None:
    if key not in given:
        return
    value, kinds = given[key], int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < math.inf:
        raise OptionError(f"option {key!r} is {value!r}; expected {what}")
