"""The policy zoo: published caching methods on shared machinery, by name.

`edf` and the plain forecasters of `passes.portfolio` are solved under a budget; a policy here has
options of its own instead. `docs/policies.md` lists them and shows how to add one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from ..plan_format import DecisionRule, PlanError
from ..portfolio import POLICIES as SOLVED
from .base import (
    BRANCHES,
    CHAIN,
    DENOISER,
    Decider,
    DynamicPolicy,
    Limit,
    Policy,
    Reading,
    Subject,
    every,
    option,
    subject,
)
from .dbcache import DBCache, FirstBlockCache
from .deepcache import DeepCache
from .delta_dit import DeltaDit
from .easycache import EasyCache
from .fora import Fora
from .l2p import L2P
from .magcache import MagCache
from .pab import Pab
from .partial import Branches, Partial
from .smoothcache import SmoothCache
from .taylorseer import TaylorSeer
from .teacache import TeaCache

__all__ = [
    "BRANCHES",
    "CHAIN",
    "DENOISER",
    "SOLVED",
    "ZOO",
    "Decider",
    "DynamicPolicy",
    "Limit",
    "Policy",
    "Reading",
    "Subject",
    "decider",
    "device_limit",
    "every",
    "make",
    "names",
    "option",
    "parse",
    "register",
    "subject",
]

ZOO: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        Fora, DeltaDit, Pab, TeaCache, FirstBlockCache, DBCache, MagCache, TaylorSeer, L2P,
        SmoothCache, DeepCache, EasyCache, Partial, Branches,
    )
}  # fmt: skip

P = TypeVar("P", bound=type[Policy])


def register(policy: P) -> P:
    """Add a policy of one's own to the zoo, as a class decorator; its name must be new."""
    if policy.name in ZOO or policy.name in SOLVED:
        raise PlanError(f"a policy called {policy.name!r} exists already; name yours otherwise")
    ZOO[policy.name] = policy
    return policy


def names() -> tuple[str, ...]:
    """Every policy that can make a plan."""
    return (*SOLVED, *ZOO)


def make(name: str, options: Mapping[str, Any] | None = None) -> Policy:
    """A policy of the zoo with these options; PlanError names what exists."""
    if name not in ZOO:
        near = difflib.get_close_matches(str(name), names(), n=1)
        hint = f"; did you mean {near[0]!r}" if near else ""
        raise PlanError(f"no policy {name!r}{hint}. There are {', '.join(names())}")
    kind, given = ZOO[name], dict(options or {})
    known = [f.name for f in fields(kind)]
    for key in given:
        if key not in known:
            raise PlanError(f"policy {name!r} has no option {key!r}; it has {', '.join(known)}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """`taylorseer:order=2,interval=4` as a name and options; PlanError for what is no option."""
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise PlanError(f"{part!r} in policy {text!r} is no NAME=VALUE")
        options[key.strip()] = _value(value.strip())
    return name, options


def decider(rule: DecisionRule, steps: int) -> Decider:
    """The rule of a plan at work, for one generation of `steps` steps and one branch."""
    policy = make(rule.policy, dict(rule.options))
    if not isinstance(policy, DynamicPolicy):
        raise PlanError(f"policy {rule.policy!r} decides nothing at run time")
    return policy.begin(steps)


def device_limit(rule: DecisionRule) -> Limit | None:
    """The rule of a plan as a limit that a device can follow; None where it is more than that."""
    policy = make(rule.policy, dict(rule.options))
    if not isinstance(policy, DynamicPolicy) or [p.measured for p in rule.probes] != [False]:
        return None
    return policy.limit()


def _value(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    if "/" in text:  # several numbers
        return tuple(float(part) for part in text.split("/"))
    return text
