"""What storing slots in fewer bits costs in fidelity: the small trained models, one plan each.

    python -m bench.slot_formats --out bench/results/slot-formats.json

Each format runs the same plans on the same held-out samples; PSNR is of decoded pictures to the
uncached ones. Parts run eagerly: storage does not depend on the compiler.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import ditcache
import torch
from ditcache.kernels.formats import FORMATS
from ditcache.runtime.session import session_of
from rich.console import Console
from torch import nn

from .arguments import Parser, factor, whole
from .environment import environment, write_json
from .metrics import psnr, spread
from .workload import CALIBRATION_SEED, EVALUATION_SEED, WORKLOADS, Batch, Workload


def measure(
    workload: Workload,
    profile: ditcache.Profile,
    batches: Sequence[Batch],
    reference: torch.Tensor,
    *,
    kind: str | None,
    speedup: float,
    steps: int,
) -> dict[str, Any]:
    """PSNR of one format at one speedup, and the bytes of its slots for one guidance branch."""
    model = _compiled(workload.denoiser, kind)
    plan = profile.plan(speedup)
    workload.sample(model, batches[0], 2)
    ditcache.apply(model, plan)
    pictures = [workload.pictures(workload.sample(model, b, steps)) for b in batches]
    session = session_of(model)
    assert session is not None
    slots = session.executors[0].program(plan).graph.slots
    found = spread(psnr(torch.cat(pictures), reference))
    return {
        "model": workload.name,
        "format": kind,
        "speedup": speedup,
        "computed": plan.computed_steps,
        "history": plan.regions[0].history,
        "slot_bytes": sum(s.nbytes for s in slots),
        "psnr": found.as_dict(),
        "fallbacks": ditcache.summary(model).fallbacks,
    }


def _compiled(model: nn.Module, kind: str | None) -> nn.Module:
    torch._dynamo.reset()
    options: dict[str, Any] = {"inner": "eager", "remember": False, "slot_format": kind}
    compiled: Any = torch.compile(copy.deepcopy(model), backend="ditcache", options=options)
    return compiled


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse options, measure, print and write after each row."""
    parser = Parser("bench.slot_formats", __doc__)
    parser.add_argument("--models", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--speedups", nargs="+", type=factor, default=[3.0])
    parser.add_argument("--samples", type=whole, default=32)
    parser.add_argument("--calibration", type=whole, default=8)
    parser.add_argument("--batch", type=whole, default=8)
    parser.add_argument("--steps", type=whole, default=50)
    parser.out()
    given = parser.parse_args(arguments)
    document: dict[str, Any] = {
        "environment": environment("bench.slot_formats"),
        "samples": given.samples,
        "calibration": given.calibration,
        "steps": given.steps,
        "rows": [],
    }
    console = Console()
    for name in given.models:
        workload = WORKLOADS[name]()
        made = workload.batches(given.samples, given.batch, seed=EVALUATION_SEED)
        plain = [workload.pictures(workload.sample(workload.denoiser, b, given.steps))
                 for b in made]  # fmt: skip
        seen = workload.batches(
            given.calibration, given.batch, seed=CALIBRATION_SEED, calibration=True
        )

        def generate(i: int, model: Any, workload: Workload = workload, seen: Any = seen) -> None:
            workload.sample(model, seen[i], given.steps)

        model = _compiled(workload.denoiser, None)
        profile = ditcache.calibrate(model, lambda i, m=model: generate(i, m), len(seen))
        for speedup in given.speedups:
            for kind in (None, *FORMATS):
                row = measure(
                    workload, profile, made, torch.cat(plain),
                    kind=kind, speedup=speedup, steps=given.steps,
                )  # fmt: skip
                document["rows"].append(row)
                mean = row["psnr"]["mean"]
                console.print(
                    f"{name} {speedup:g}x {kind or 'as it is'}: {mean:.2f} dB, "
                    f"{row['slot_bytes']} bytes"
                )
                if given.out:
                    write_json(given.out, document)


if __name__ == "__main__":
    main()
