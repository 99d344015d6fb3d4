"""Coverage: what ditcache finds in every architecture, and what a plan at 2x leaves of its work.

    python -m bench.coverage --out bench/results/coverage.json

Small models with random weights, through their own pipelines: the columns are counts, the same on
every machine. `tests/architectures` checks them, and that the results are right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ditcache
import torch
from ditcache.passes.ir import StepGraph
from ditcache.passes.opt_stats import shares
from ditcache.runtime.session import session_of
from torch import nn

from .architectures import ARCHITECTURES, Architecture, Request, Sampler
from .arguments import Parser, one_of
from .environment import environment, write_json

STEPS, COMPUTED = 8, 4
CALIBRATION = 2


@dataclass(frozen=True)
class Row:
    """One line of the table; shares are of one step, `reduction` of a whole generation.

    `hoisted_macs` and `hoisted_weights` are the shares of the MACs and of the weight bytes that
    serve work which no latent reaches. `reduction` counts the hoisted work as saved too.
    """

    name: str
    cls: str
    pipeline: str
    family: str
    guidance: str
    graphs: int
    blocks: int
    branches: int
    deep: bool
    hoisted_macs: float
    hoisted_weights: float
    reduction: float
    not_cached: str = ""


@dataclass(frozen=True)
class Covered:
    """An architecture at work: compiled with exact hoisting, under a plan at 2x, and its row."""

    model: nn.Module
    compiled: Any
    sampler: Sampler
    plan: ditcache.Plan | None
    row: Row


def compile_for_tests(model: nn.Module, policy: str) -> Any:
    """The model behind ditcache with the eager inner compiler, which keeps every bit."""
    return torch.compile(model, backend="ditcache", options={"policy": policy, "inner": "eager"})


def cover(architecture: Architecture) -> Covered:
    """Compile, calibrate, plan, and run one generation under the plan."""
    torch._dynamo.reset()
    model, sampler = architecture.build(), architecture.sampler()
    if architecture.lazy:
        sampler(model, Request(1))
    compiled = compile_for_tests(model, "exact")
    if not architecture.single_graph:
        sampler(compiled, Request(STEPS))
        return Covered(model, compiled, sampler, None, _row(architecture, model, 1.0))
    profile = ditcache.calibrate(
        compiled, lambda i: sampler(compiled, Request(STEPS, seed=10 + i)), samples=CALIBRATION
    )
    plan = profile.plan(computed_steps=COMPUTED)
    ditcache.apply(compiled, plan)
    ditcache.reset(compiled)
    sampler(compiled, Request(STEPS))
    reduction = ditcache.summary(compiled).reduction
    return Covered(model, compiled, sampler, plan, _row(architecture, model, reduction))


def _row(architecture: Architecture, model: nn.Module, reduction: float) -> Row:
    session = session_of(model)
    assert session is not None
    kinds, macs, weights = Counter[str](), 0.0, 0.0
    if session.executors:
        graph = session.executors[0].graph
        kinds = Counter(r.kind for r in graph.regions)
        macs, weights = hoisted_shares(graph)
    return Row(
        architecture.name,
        architecture.cls,
        architecture.pipeline,
        architecture.family,
        architecture.guidance,
        session.graphs,
        kinds["block"],
        kinds["branch"],
        bool(kinds["deep"]),
        round(macs, 4),
        round(weights, 4),
        round(reduction, 3),
        "; ".join(reason.split(" (")[0] for reason in session.uncached),
    )


def hoisted_shares(graph: StepGraph) -> tuple[float, float]:
    """Shares of the MACs and weight bytes of a step that serve const, condition and step work."""
    found = shares(graph)
    outside = [s for name, s in found.items() if name != "volatile"]
    macs = sum(s.macs for s in found.values())
    weights = sum(s.weight_bytes for s in found.values())
    return (
        sum(s.macs for s in outside) / macs if macs else 0.0,
        sum(s.weight_bytes for s in outside) / weights if weights else 0.0,
    )


def markdown(rows: list[Row]) -> str:
    """The table of the README."""
    lines = [
        "| model | family | guidance | graphs | blocks | branches | hoisted MACs, weights "
        "| at 2x |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if r.not_cached:
            end = f"not cached: {r.not_cached} | | | | "
            lines.append(f"| {r.name} | {r.family} | {r.guidance} | {end}|")
            continue
        deep = " + deep part" if r.deep else ""
        lines.append(
            f"| {r.name} | {r.family} | {r.guidance} | {r.graphs} | {r.blocks} | "
            f"{r.branches}{deep} | {r.hoisted_macs:.1%} / {r.hoisted_weights:.1%} | "
            f"{r.reduction:.2f}x |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("bench.coverage", __doc__)
    parser.out()
    parser.add_argument(
        "names", nargs="*", type=one_of(ARCHITECTURES), help="architectures; else all"
    )
    given = parser.parse_args(arguments)
    rows = parser.rows_of(given.out, Row)
    for name in given.names or ARCHITECTURES:
        rows[name] = cover(ARCHITECTURES[name]).row
    table = [rows[name] for name in ARCHITECTURES if name in rows]
    print(markdown(table))
    if given.out is not None:
        document = {
            "environment": environment("bench.coverage"),
            "steps": STEPS,
            "computed": COMPUTED,
            "rows": [asdict(r) for r in table],
        }
        write_json(given.out, document)


if __name__ == "__main__":
    main()
