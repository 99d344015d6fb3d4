"""What a skipped step, a recorded step and a plan cost, on the small Flux.

A skipped step is not free: the call is wrapped by Dynamo, which checks its guards where no shortcut
is taken, the runtime finds out which step it is, and the forecast is computed. Each share is timed
inside whole generations, beside computed steps. A recorded step sketches its output and latents;
its share is timed inside the generations of a calibration.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ditcache
import numpy as np
import torch
from ditcache.runtime.executor import StepExecutor
from ditcache.runtime.program import Program
from ditcache.runtime.recorder import Recording
from rich.console import Console
from rich.table import Table
from torch import nn

from .arguments import COMPILERS, Parser, plain_messages, whole
from .environment import environment, write_json
from .workload import CALIBRATION_SEED, EVALUATION_SEED, FluxEmoji

TARGET = 0.02
"""Of a computed step, for what a skipped one costs, and for what recording adds to one."""
PLANNED = 3.0
# The default first; the others show what the shortcut saves, and what leaving guards out would.
GUARDS: dict[str, dict[str, Any]] = {
    "shortcut": {},
    "all guards": {"shortcut": False},
    "module guards skipped": {
        "shortcut": False,
        "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
    },
}

Spent = defaultdict[str, float]
"""Seconds by part."""


class Timed(nn.Module):
    """Passes calls on; keeps the seconds of each, and of them those `spent` in named parts."""

    def __init__(self, model: nn.Module, spent: Spent | None = None) -> None:
        super().__init__()
        self.model = model
        self.seconds: list[float] = []
        self.parts: list[Spent] = []
        self.spent: Spent = Spent(float) if spent is None else spent

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.spent.clear()
        started = time.perf_counter()
        result = self.model(*args, **kwargs)
        self.seconds.append(time.perf_counter() - started)
        self.parts.append(self.spent.copy())
        return result

    def __getattr__(self, name: str) -> Any:
        # The pipeline reads the transformer's config, dtype and cache_context.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


@contextmanager
def stopwatch(cls: type, name: str, spent: Spent) -> Generator[None]:
    """Add up the seconds of every call of a method, under its class's name, while inside."""
    original = getattr(cls, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = original(*args, **kwargs)
        spent[cls.__name__] += time.perf_counter() - started
        return result

    setattr(cls, name, wrapped)
    try:
        yield
    finally:
        setattr(cls, name, original)


def measure(
    flux: FluxEmoji, guards: str, *, batch: int, steps: int, generations: int, inner: str
) -> dict[str, Any]:
    """Median microseconds of computed and skipped calls, and where those of a skipped one go."""
    torch.compiler.reset()
    options: dict[str, Any] = {"inner": inner, "remember": False} | GUARDS[guards]
    model: Any = torch.compile(flux.denoiser, backend="ditcache", options=options)
    calibration = flux.batches(batch, batch, seed=CALIBRATION_SEED, calibration=True)
    held_out = flux.batches(batch, batch, seed=EVALUATION_SEED)[0]
    profile = ditcache.calibrate(model, lambda i: flux.sample(model, calibration[i], steps), 1)
    plan = profile.plan(speedup=2.0)
    ditcache.apply(model, plan)
    flux.sample(model, held_out, steps)
    spent: Spent = Spent(float)
    outer = Timed(model, spent)
    with (
        stopwatch(StepExecutor, "__call__", spent),
        stopwatch(StepExecutor, "forecast", spent),  # past the guards
        stopwatch(Program, "run", spent),
        stopwatch(Program, "forecast", spent),
    ):
        for _ in range(generations):
            flux.sample(outer, held_out, steps)
    flux.pipeline.transformer = flux.denoiser
    shortcuts = ditcache.summary(model).shortcuts
    if bool(shortcuts) != ("shortcut" not in GUARDS[guards]):
        raise RuntimeError(f"{guards}: {shortcuts} skipped steps went past the guards")
    ditcache.remove(model)  # the next row begins without what this one left in front of the model
    branches = len(outer.seconds) // (generations * steps)
    computes = np.asarray([s in plan.regions[0].computed for s in range(steps)])
    computed = np.tile(np.repeat(computes, branches), generations)
    whole = np.asarray(outer.seconds)
    executor = np.asarray([p["StepExecutor"] for p in outer.parts])
    program = np.asarray([p["Program"] for p in outer.parts])
    parts = {
        "guards": whole - executor,
        "dispatch": executor - program,
        "forecast": program,
        "whole": whole,
    }
    skipped = {name: float(np.median(v[~computed])) for name, v in parts.items()}
    full = float(np.median(whole[computed]))
    return {
        "guards": guards,
        "batch": batch,
        "inner": inner,
        "calls": len(whole),
        "shortcuts": shortcuts,
        "computed_us": round(full * 1e6, 1),
        "skipped_us": {name: round(s * 1e6, 1) for name, s in skipped.items()},
        "share": round(skipped["whole"] / full, 5),
    }


def recording(
    flux: FluxEmoji, *, batch: int, steps: int, generations: int, inner: str, folder: Path
) -> dict[str, Any]:
    """Median microseconds of recorded calls and of the recording in them, and what comes of it."""
    torch.compiler.reset()
    options: dict[str, Any] = {"inner": inner, "remember": False}
    model: Any = torch.compile(flux.denoiser, backend="ditcache", options=options)
    calibration = flux.batches(batch * generations, batch, seed=CALIBRATION_SEED, calibration=True)
    flux.sample(model, calibration[0], steps)
    spent: Spent = Spent(float)
    outer = Timed(model, spent)
    with stopwatch(Recording, "add", spent):
        profile = ditcache.calibrate(
            model, lambda i: flux.sample(outer, calibration[i], steps), generations
        )
    flux.pipeline.transformer = flux.denoiser
    ditcache.remove(model)
    path = folder / "flux.profile.safetensors"
    profile.save(path)
    started = time.perf_counter()
    profile.plan(speedup=PLANNED)
    planned = time.perf_counter() - started
    whole = np.asarray(outer.seconds)
    added = np.asarray([parts["Recording"] for parts in outer.parts])
    return {
        "batch": batch,
        "inner": inner,
        "steps": steps,
        "calls": len(whole),
        "computed_us": round(float(np.median(whole - added)) * 1e6, 1),
        "recording_us": round(float(np.median(added)) * 1e6, 1),
        "share": round(float(np.median(added / (whole - added))), 5),
        "profile_bytes": path.stat().st_size,
        "planning_seconds": round(planned, 3),
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="one call of the small Flux, microseconds (median)")
    for heading in ("", "computed", "skipped", "guards", "dispatch", "forecast", "share"):
        table.add_column(heading, justify="right")
    for row in rows:
        parts = row["skipped_us"]
        texts = [f"{parts[k]:.0f}" for k in ("whole", "guards", "dispatch", "forecast")]
        label = f"batch {row['batch']}, {row['guards']}"
        table.add_row(label, f"{row['computed_us']:.0f}", *texts, f"{row['share']:.2%}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse options, measure, print and write."""
    parser = Parser("bench.overhead", __doc__)
    parser.add_argument("--batches", nargs="+", type=whole, default=[1, 8])
    parser.add_argument("--steps", type=whole, default=50)
    parser.add_argument("--generations", type=whole, default=3)
    parser.add_argument("--inner", choices=COMPILERS, default="inductor")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, no use")
    parser.out()
    args = parser.parse_args(arguments)
    plain_messages()
    if args.quick:
        args.batches, args.steps, args.generations, args.inner = [1], 8, 1, "eager"
    console = Console(width=max(Console().width, 110))
    flux = FluxEmoji()
    rows: list[dict[str, Any]] = []
    for batch in args.batches:
        for guards in GUARDS:
            with console.status(f"batch {batch}, {guards}"):
                row = measure(
                    flux,
                    guards,
                    batch=batch,
                    steps=args.steps,
                    generations=args.generations,
                    inner=args.inner,
                )
            rows.append(row)
    recorded: list[dict[str, Any]] = []
    for batch in args.batches:
        with console.status(f"batch {batch}, recording"), TemporaryDirectory() as folder:
            row = recording(
                flux,
                batch=batch,
                steps=args.steps,
                generations=args.generations,
                inner=args.inner,
                folder=Path(folder),
            )
        recorded.append(row)
    console.print(_table(rows))
    for row in recorded:
        console.print(
            f"batch {row['batch']}: recording adds {row['recording_us']:.0f} µs to a step "
            f"({row['share']:.2%}); the profile has {row['profile_bytes'] / 1024:.0f} KiB, "
            f"a plan takes {row['planning_seconds']:.2f} s"
        )
    console.print(
        f"target: a skipped step costs, and recording adds, at most {TARGET:.0%} of a computed one"
    )
    if args.out:
        document = {"environment": environment("bench.overhead"), "target": TARGET, "rows": rows}
        write_json(args.out, document | {"recording": recorded})


if __name__ == "__main__":
    main()
