"""Cold start: seconds until a 57-block Flux has given its first output, by three ways to compile.

Each way runs in a process of its own with an empty Inductor cache, cold and warmed: in a warmed
process an unrelated tiny function was compiled by plain Inductor before, so that what Inductor sets
up once in a process (probing the compiler, importing, precompiling headers) is no part of either
side. Processor seconds, of the process and of the compilers it starts, stand beside the wall's:
they bear a busy machine. The ways: the whole graph by plain
Inductor, diffusers' regional compilation (`compile_repeated_blocks`), and ditcache, which lowers
each distinct block once and still sees the whole step. The model has the depth of FLUX.1-dev (19
double and 38 single blocks) at a small width, with random weights: compile time depends on the
graph, hardly on the width.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._dynamo.utils import compilation_time_metrics

from .arguments import Parser, plain_messages, whole
from .environment import environment, write_json

WAYS = ("ditcache", "inductor", "repeated-blocks")
HEATS = {"cold": False, "warmed": True}
"""Whether a process has compiled before."""
TARGET = 3.0


def build(double: int, single: int) -> Any:
    """Build the model: FLUX.1-dev's shape, 64 wide."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    ).eval()


def inputs() -> dict[str, Any]:
    """Give one call's inputs: 64 image and 16 text tokens."""
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(1, 64, 16, generator=generator),
        "encoder_hidden_states": torch.randn(1, 16, 32, generator=generator),
        "pooled_projections": torch.randn(1, 32, generator=generator),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.randn(64, 3, generator=generator),
        "txt_ids": torch.zeros(16, 3),
        "return_dict": False,
    }


def processor_seconds() -> float:
    """What this process and its finished children have used so far."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@torch.no_grad()
def measure(way: str, double: int, single: int, *, warmed: bool = False) -> dict[str, Any]:
    """Compile one way in this process; seconds of the first and a later call, memory, error."""
    if warmed:
        tiny: Any = torch.compile(lambda x: (x.sin() + x).softmax(-1))
        tiny(torch.randn(32, 33))
        torch._dynamo.utils.compilation_time_metrics.clear()
    model = build(double, single)
    expected: Tensor = model(**inputs())[0]
    compiled: Any = model
    if way == "ditcache":
        compiled = torch.compile(model, backend="ditcache", options={"remember": False})
    elif way == "inductor":
        compiled = torch.compile(model)
    else:
        model.compile_repeated_blocks(fullgraph=True)
    started, used = time.perf_counter(), processor_seconds()
    got: Tensor = compiled(**inputs())[0]
    first, used = time.perf_counter() - started, processor_seconds() - used
    # Dynamo traces the whole graph either way; what a backend can save is the rest.
    spent = {k: sum(v) for k, v in compilation_time_metrics.items()}
    backend = spent.get("OutputGraph.call_user_compiler", 0.0)
    later: list[float] = []
    for _ in range(10):
        started = time.perf_counter()
        compiled(**inputs())
        later.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {
        "way": way,
        "warmed": warmed,
        "processor_seconds": round(used, 3),
        "first_call_seconds": round(first, 3),
        "tracing_seconds": round(spent.get("_compile.compile_inner", first) - backend, 3),
        "backend_seconds": round(backend, 3),
        "later_call_seconds": round(sorted(later)[5], 5),
        "peak_memory_mib": round(peak, 1),
        "largest_error": float((got - expected).abs().max()),
    }


def in_own_process(way: str, double: int, single: int, *, warmed: bool = False) -> dict[str, Any]:
    """Run `measure` in a fresh process with a fresh Inductor cache."""
    with tempfile.TemporaryDirectory() as cache:
        arguments = ["--child", way, "--double", str(double), "--single", str(single)]
        arguments += ["--warmed"] * warmed
        done = subprocess.run(
            [sys.executable, "-m", "bench.cold", *arguments],
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "DITCACHE_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{way} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse options, run every way `--repeats` times in turn, print and write."""
    parser = Parser("bench.cold", __doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--repeats", type=whole, default=3)
    parser.add_argument("--double", type=whole, default=19)
    parser.add_argument("--single", type=whole, default=38)
    parser.out()
    parser.add_argument("--warmed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    plain_messages()
    if args.child:
        print(json.dumps(measure(args.child, args.double, args.single, warmed=args.warmed)))
        return
    console = Console(width=max(Console().width, 110))
    runs: list[dict[str, Any]] = []
    for _ in range(args.repeats):
        for heat, warmed in HEATS.items():
            for way in args.ways:
                with console.status(f"{way}: {args.double} + {args.single} blocks"):
                    runs.append(in_own_process(way, args.double, args.single, warmed=warmed))
                console.print(f"{way}, {heat}: {runs[-1]['first_call_seconds']:.1f} s")
    document: dict[str, Any] = {
        "environment": environment("bench.cold"),
        "blocks": {"double": args.double, "single": args.single},
        "target": TARGET,
        "runs": runs,
    }
    document |= _against_inductor(runs)
    title = f"first call of a Flux of {args.double} + {args.single} blocks, medians"
    console.print(_table(title, runs, args.ways))
    if args.out:
        write_json(args.out, document)


def _table(title: str, runs: list[dict[str, Any]], ways: Sequence[str]) -> Table:
    """A row for each way, cold and warmed."""
    table = Table(title=title)
    for heading in ("", "first call", "against ditcache", "processor", "tracing", "backend"):
        table.add_column(heading, justify="right")
    for heat, warmed in HEATS.items():
        own = _median(runs, "ditcache", warmed=warmed)
        for way in ways:
            run = _median(runs, way, warmed=warmed)
            ratio = _ratio(run, own, "first_call_seconds")
            table.add_row(
                f"{way}, {heat}",
                f"{run['first_call_seconds']:.1f} s",
                "" if ratio is None else f"{ratio:.2f}x",
                f"{run['processor_seconds']:.1f} s",
                f"{run['tracing_seconds']:.1f} s",
                f"{run['backend_seconds']:.1f} s",
            )
    return table


def _against_inductor(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Plain Inductor's seconds over ditcache's, where both ran."""
    found: dict[str, dict[str, float]] = {}
    for heat, warmed in HEATS.items():
        own = _median(runs, "ditcache", warmed=warmed)
        plain = _median(runs, "inductor", warmed=warmed)
        for seconds in ("first_call_seconds", "processor_seconds", "backend_seconds"):
            ratio = _ratio(plain, own, seconds)
            if ratio is not None:
                found.setdefault(f"inductor_over_ditcache_{heat}", {})[seconds] = ratio
    return found


def _median(runs: list[dict[str, Any]], way: str, *, warmed: bool) -> dict[str, float]:
    """The median of each figure over the repeats; empty if there were none."""
    mine = [r for r in runs if r["way"] == way and r["warmed"] == warmed]
    figures = [k for k, v in mine[0].items() if isinstance(v, float)] if mine else []
    return {k: statistics.median(r[k] for r in mine) for k in figures}


def _ratio(run: dict[str, float], own: dict[str, float], figure: str) -> float | None:
    return round(run[figure] / own[figure], 3) if run and own else None


if __name__ == "__main__":
    main()
