"""The exact tier: what hoisting alone removes, and that not one bit of the result changes.

`python -m bench.exact` writes `exact.json`: both trained models, each with eager parts and with
Inductor.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ditcache
import torch
from ditcache.passes.ir import InputKind, kind_of, placeholders, value_of
from ditcache.runtime.program import Executable, Program
from ditcache.runtime.session import session_of
from torch import Tensor, fx, nn

from .arguments import Parser, whole
from .environment import environment, write_json
from .workload import EVALUATION_SEED, WORKLOADS, Batch, Workload


def measure(workload: Workload, batches: list[Batch], *, steps: int, inner: str) -> dict[str, Any]:
    """Compare whole generations under policy "exact" with ones where nothing is hoisted.

    With `inner="eager"` the reference is the plain, uncompiled model. With Inductor it is the same
    policy with `hoist_budget=0`, so that nothing is remembered: Inductor itself rounds differently
    from eager, and what it is given as a whole differently from the same in parts.
    """
    model = _compiled(workload.denoiser, "exact", inner)
    plain: nn.Module = workload.denoiser
    if inner != "eager":
        plain = _compiled(workload.denoiser, "exact", inner, hoist_budget=0)
    equal, worst = True, 0.0
    for batch in batches:
        expected: Tensor = workload.sample(plain, batch, steps)
        got: Tensor = workload.sample(model, batch, steps)
        equal = equal and bool(torch.equal(got, expected))
        worst = max(worst, float((got - expected).abs().max()))
    said = ditcache.summary(model)
    touched, whole = weight_bytes(model)
    return {
        "inner": inner,
        "reference": "uncompiled" if inner == "eager" else "hoist_budget=0, same inner",
        "generations": len(batches),
        "bit_identical": equal,
        "largest_difference": worst,
        "calls": said.calls,
        "macs": said.macs,
        "macs_uncached": said.macs_uncached,
        "macs_removed": round(1 - said.macs / said.macs_uncached, 6),
        "weight_bytes_touched": touched,
        "weight_bytes_uncached": whole,
        "weight_bytes_removed": round(1 - touched / whole, 6),
        "hoist_hits": said.hoist_hits,
        "hoist_runs": said.hoist_runs,
        "hoisted_bytes": said.hoisted_bytes,
    }


def weight_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of parameters that the calls so far read, and what they would have read unhoisted."""
    session = session_of(model)
    assert session is not None
    executor = session.executors[0]
    sizes = {
        node.name: value_of(node).nbytes
        for node in placeholders(executor.graph.graph)
        if kind_of(node) is InputKind.PARAMETER
    }
    program: Program = executor.program(None)
    ready: Executable = program.executable(program.full)
    each_call = _read(ready.variant.module.graph, sizes)
    calls = session.stats.calls
    touched = calls * each_call
    for prologue in program.graph.prologues:
        runs = session.stats.hoist_runs[prologue.name]
        touched += runs * _read(prologue.module.graph, sizes)
    return touched, calls * sum(sizes.values())


def _read(graph: fx.Graph, sizes: dict[str, int]) -> int:
    return sum(sizes.get(node.name, 0) for node in placeholders(graph) if node.users)


def _compiled(model: nn.Module, policy: str, inner: str, **more: Any) -> Any:
    options = {"inner": inner, "policy": policy} | more
    return torch.compile(copy.deepcopy(model), backend="ditcache", options=options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse options, measure, write."""
    parser = Parser("bench.exact", __doc__)
    parser.add_argument("--steps", type=whole, default=50)
    parser.out(default=Path("out/exact.json"))
    args = parser.parse_args(arguments)
    made: dict[str, Any] = {"environment": environment("bench.exact"), "steps": args.steps}
    for name, load in WORKLOADS.items():
        made[name] = []
        for inner in ("eager", "inductor"):
            torch.compiler.reset()
            workload = load()
            batches = workload.batches(16, 8, seed=EVALUATION_SEED)
            found = measure(workload, batches, steps=args.steps, inner=inner)
            made[name].append(found)
            print(name, inner, found)
    write_json(args.out, made)


if __name__ == "__main__":
    main()
