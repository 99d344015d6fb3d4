"""The verifier: a table of rules that hold after every pass, each with a number and a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import verifier_cache_rules as cache_rules
from . import verifier_rules as rules
from .base import PassContext
from .ir import StepGraph
from .verifier_rules import Violation


class VerifyError(RuntimeError):
    """A pass left the graph in a state that a rule forbids: a bug in ditcache, never in the model.

    Names the rule, the pass, what was expected, what came, the lines, and how to reproduce.
    """

    def __init__(self, rule: str, after: str, violation: Violation, name: str) -> None:
        self.rule, self.after, self.violation = rule, after, violation
        shown = "".join(f"\n    {line}" for line in violation.lines[:8])
        super().__init__(
            f"{rule} ({RULES[rule][0]}) broken after pass {after!r}\n"
            f"  expected: {violation.expected}\n  got: {violation.got}{shown}\n"
            f"  reproduce: ditcache-opt {name} --verify-each --stop-after {after} "
            f"--print-after {after}"
        )


def verify(graph: StepGraph, ctx: PassContext, after: str, *, recompute: bool = True) -> None:
    """Check every rule; raises VerifyError for the first that fails.

    `recompute=False` skips running each op on fake tensors, the slow half of V1.
    """
    for rule, (_, check) in RULES.items():
        checks = rules.lint(graph) if rule == "V1" and not recompute else check(graph, ctx)
        for violation in checks:
            raise VerifyError(rule, after, violation, graph.name)


Rule = Callable[[StepGraph, PassContext], Iterator[Violation]]
RULES: dict[str, tuple[str, Rule]] = {
    "V1": ("graph lint and recomputed shapes agree", rules.v1),
    "V2": ("both arms of a cond yield equal shape, stride and dtype", rules.v2),
    "V3": ("every forecast is preceded by enough writes", rules.v3),
    "V4": ("one writer per slot per step", rules.v4),
    "V5": ("no new aliasing between outputs and slots", rules.v5),
    "V6": ("a predicate does not depend on the region that it guards", rules.v6),
    "V7": ("no RNG or mutation inside a cached region", rules.v7),
    "V8": ("no path from timestep or latents into stabler work", rules.v8),
    "V9": ("slot bytes within the budget", rules.v9),
    "V10": ("no host sync in a captured region", rules.v10),
    "V11": ("the plan covers the step grid exactly", rules.v11),
    "V12": ("scheduled regions do not overlap", cache_rules.v12),
    "V13": ("a delta is taken from, and added to, the same live-in", cache_rules.v13),
    "V14": ("a tail takes from the head what the head computed", cache_rules.v14),
}
