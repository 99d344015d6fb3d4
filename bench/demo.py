"""The demo: the small Flux through diffusers' own pipeline, uncached and at 2x, 3x and 5x.

`python -m bench.demo` prints one table and writes `summary.json`, `grid.png` and `stability.png`.
Plans are made on calibration prompts and seeds; everything shown is on others.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ditcache
import torch
from ditcache import Plan, Profile
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from .arguments import COMPILERS, Parser, folder, plain_messages
from .demo_report import Pace, Row, as_dicts, check, make_row, make_table
from .environment import environment, write_json
from .pictures import save_grid, save_stability
from .quality import Pictures, distribution, fidelity
from .timing import Wall, timed
from .workload import CALIBRATION_SEED, EVALUATION_SEED, Batch, FluxEmoji

UNCACHED, AGAIN, EAGER, INDUCTOR = "uncached", "uncached again", "eager", "inductor"


@dataclass(frozen=True)
class Settings:
    """What the demo runs. Each batch of evaluation samples is also one round of timing."""

    prompts: int = 16
    seeds: int = 2
    batch: int = 8
    steps: int = 50
    speedups: tuple[float, ...] = (2.0, 3.0, 5.0)
    calibration_batches: int = 2
    inner: str = "inductor"


QUICK = Settings(
    prompts=2,
    seeds=1,
    batch=2,
    steps=8,
    speedups=(2.0,),
    calibration_batches=1,
    inner="eager",
)


class Demo:
    """State of one run: models, plans, samples, seconds."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.settings = settings
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.flux = FluxEmoji()
        # Code that was compiled for another copy of this model in this process is not ours.
        torch.compiler.reset()
        self.plain = self.flux.denoiser
        self.studied = copy.deepcopy(self.plain)
        options = {"inner": settings.inner, "remember": False}
        self.model = _compiled(self.plain, "ditcache", options)
        self.inductor = _compiled(self.plain, settings.inner)
        self.plans: dict[str, Plan] = {}
        self.latents: dict[str, list[Tensor]] = {}
        self.walls: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}
        self.macs: dict[str, float] = {}
        # Every prompt meets every seed; a batch holds different prompts.
        self.batches: list[Batch] = []
        for seed in range(settings.seeds):
            first = EVALUATION_SEED + seed * settings.prompts
            self.batches += self.flux.batches(settings.prompts, settings.batch, seed=first)
        self.captions = [c for b in self.batches for c in self.flux.captions(b)]

    def compile(self) -> None:
        """Compile with both backends on a generation of two steps."""
        task = self.progress.add_task("compile", total=2)
        self.seconds["compile"] = timed(lambda: self._sample(self.model, 2))[1]
        ditcache.remove(self.model)
        self.progress.advance(task)
        self.seconds["compile_inductor"] = timed(lambda: self._sample(self.inductor, 2))[1]
        self.progress.advance(task)

    def plan(self) -> None:
        """Calibrate on calibration prompts and seeds, and make a plan for each speedup."""
        settings = self.settings
        task = self.progress.add_task("calibrate and plan", total=settings.calibration_batches + 1)
        count = settings.calibration_batches * settings.batch
        batches = self.flux.batches(count, settings.batch, seed=CALIBRATION_SEED, calibration=True)

        def generate(i: int) -> None:
            self.flux.sample(self.model, batches[i], settings.steps)
            self.progress.advance(task)

        profile, seconds = timed(
            lambda: ditcache.calibrate(self.model, generate, settings.calibration_batches)
        )
        self.seconds["calibration"] = seconds
        started = time.perf_counter()
        for speedup in settings.speedups:
            self.plans[f"{speedup:g}x"] = profile.plan(speedup=speedup)
        self.seconds["planning"] = time.perf_counter() - started
        self.progress.advance(task)

    def sample(self) -> None:
        """Run every variant on every batch, in turn; a first round warms up and is not timed."""
        settings = self.settings
        cached = [UNCACHED, *self.plans, AGAIN]
        names = [*cached, EAGER, INDUCTOR]
        total = (len(self.batches) + 1) * len(names) - 1
        task = self.progress.add_task("sample and time", total=total)
        before = ditcache.summary(self.model).lower_seconds
        for name in names:
            if name == AGAIN:
                continue
            self._run(name, self.batches[0])
            self.progress.advance(task)
        self.seconds["compile_plans"] = ditcache.summary(self.model).lower_seconds - before
        for batch in self.batches:
            for name in names:
                done = ditcache.summary(self.model)
                spent = time.process_time()
                latents, seconds = timed(lambda n=name, b=batch: self._run(n, b))
                self.walls.setdefault(name, []).append(seconds)
                self.cpu.setdefault(name, []).append(time.process_time() - spent)
                self.latents.setdefault(name, []).append(latents)
                now = ditcache.summary(self.model)
                if name not in (EAGER, INDUCTOR):
                    ran = now.macs - done.macs
                    if name == UNCACHED:  # the model's own work: what is hoisted counts as saved
                        ran = now.macs_uncached - done.macs_uncached
                    self.macs[name] = ran / settings.batch
                    if now.fallbacks != done.fallbacks:
                        raise RuntimeError(f"{name} fell back to computing: {now.fallbacks}")
                self.progress.advance(task)

    def judge(self) -> list[Row]:
        """Decode and compare."""
        names = [UNCACHED, *self.plans]
        task = self.progress.add_task("decode and judge", total=len(names))
        real = self.flux.real()
        self.pictures: dict[str, Pictures] = {}
        for name in names:
            images = torch.cat([self.flux.pictures(x) for x in self.latents[name]])
            self.pictures[name] = Pictures(images, self.flux.embed(images))
            self.progress.advance(task)
        uncached = self.pictures[UNCACHED]
        baseline = Pace(Wall(tuple(self.walls[UNCACHED])), self.macs[UNCACHED])
        rows: list[Row] = []
        for name in names:
            plan = self.plans.get(name)
            made = self.pictures[name]
            row = make_row(
                name,
                computed=plan.computed_steps if plan else self.settings.steps,
                steps=self.settings.steps,
                forecaster=plan.regions[0].forecaster if plan else "",
                pace=Pace(Wall(tuple(self.walls[name])), self.macs[name]),
                baseline=baseline,
                inductor=Wall(tuple(self.walls[INDUCTOR])),
                fidelity=fidelity(made, uncached) if plan else None,
                distribution=distribution(made, real, {UNCACHED: uncached}, self.captions),
                expected_error=plan.expected_error if plan else None,
            )
            rows.append(row)
        return rows

    def stability(self) -> Profile:
        """Drift of each block, on a copy of the model whose parts run uncompiled."""
        task = self.progress.add_task("stability map", total=1)
        model = _compiled(self.studied, "ditcache", {"inner": "eager", "policy": "none"})
        profile = ditcache.calibrate(
            model,
            lambda _: self.flux.sample(model, self.batches[0], self.settings.steps),
            1,
            regions=("block",),
        )
        self.progress.advance(task)
        return profile

    def _run(self, name: str, batch: Batch) -> Tensor:
        if name in self.plans:
            ditcache.apply(self.model, self.plans[name])
        elif name in (UNCACHED, AGAIN):
            ditcache.remove(self.model)
        model = {EAGER: self.plain, INDUCTOR: self.inductor}.get(name, self.model)
        return self.flux.sample(model, batch, self.settings.steps)

    def _sample(self, model: nn.Module, steps: int) -> Tensor:
        return self.flux.sample(model, self.batches[0], steps)


def run(settings: Settings, out: Path, console: Console) -> dict[str, Any]:
    """Run the demo and write its files; gives the summary."""
    started = time.perf_counter()
    columns = (
        TextColumn("{task.description:>20}"),
        BarColumn(40),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        demo = Demo(settings, progress)
        demo.compile()
        demo.plan()
        demo.sample()
        rows = demo.judge()
        profile = demo.stability()
    save_stability(out / "stability.png", profile)
    count = settings.prompts
    save_grid(
        out / "grid.png",
        {name: made.images[:count] for name, made in demo.pictures.items()},
        demo.captions[:count],
    )
    walls = {name: Wall(tuple(values)) for name, values in demo.walls.items()}
    demo.seconds["total"] = time.perf_counter() - started
    summary: dict[str, Any] = {
        "environment": environment("bench.demo"),
        "settings": asdict(settings),
        "rows": as_dicts(rows),
        "reference_walls": {n: round(walls[n].median, 4) for n in (EAGER, INDUCTOR, AGAIN)},
        "walls": {name: [round(s, 4) for s in wall.seconds] for name, wall in walls.items()},
        # Processor seconds: what the walls would be on an idle machine, if there is one thread.
        "cpu_seconds": {name: [round(s, 4) for s in values] for name, values in demo.cpu.items()},
        "seconds": {name: round(s, 2) for name, s in demo.seconds.items()},
        "captions": demo.captions,
        "notes": [
            "uncached: the same compiled model after ditcache.remove, every step computed",
            "realised: speedup / MACs reduction",
            f"samples: {len(demo.captions)} pictures, {len(demo.flux.real().features)} real ones",
        ],
    }
    check(summary)
    write_json(out / "summary.json", summary)
    _say(console, rows, walls, demo.seconds, summary)
    console.print(f"[bold]{out}/[/]summary.json, grid.png, stability.png")
    return summary


def _say(
    console: Console,
    rows: list[Row],
    walls: dict[str, Wall],
    seconds: dict[str, float],
    summary: dict[str, Any],
) -> None:
    settings, hardware = summary["settings"], summary["environment"]["hardware"]
    title = (
        f"Flux (7M) through FluxPipeline, {settings['steps']} steps, {settings['prompts']} "
        f"held-out prompts x {settings['seeds']} seeds, {hardware['threads']} threads of "
        f"{hardware['processor']}"
    )
    console.print(make_table(rows, title))
    baseline = walls[UNCACHED].median
    for name in (EAGER, INDUCTOR, AGAIN):
        wall = walls[name].median
        console.print(f"{name:>15}: {wall:.2f} s a batch, {wall / baseline:.3f} of uncached")
    listed = ", ".join(f"{name.replace('_', ' ')} {s:.1f} s" for name, s in seconds.items())
    console.print(f"        seconds: {listed}")


def _compiled(module: nn.Module, backend: str, options: dict[str, Any] | None = None) -> Any:
    return torch.compile(module, backend=backend, options=options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse options and run."""
    parser = Parser("bench.demo", __doc__)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, no use")
    parser.add_argument("--inner", choices=COMPILERS, help="compiler of the parts")
    parser.add_argument("--out", type=folder, default=Path("out/demo"))
    args = parser.parse_args(arguments)
    plain_messages()
    settings = QUICK if args.quick else Settings()
    if args.inner:
        settings = replace(settings, inner=args.inner)
    run(settings, args.out, Console(width=max(Console().width, 120)))


if __name__ == "__main__":
    main()
