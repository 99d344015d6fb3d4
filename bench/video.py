"""The video models, uncached and at 2x, 3x and 5x: pace, fidelity, and what happens in time.

`python -m bench.video --model wan-emoji --out bench/results` (or svd-emoji) writes
`video-MODEL.json` and `video-MODEL.png`. Plans are made on calibration inputs and seeds; what is
measured is on others. Latents and walls are kept as they come (`--work`): a run that was stopped
goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ditcache
import torch
from ditcache import Plan
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor

from .arguments import COMPILERS, Parser, folder, plain_messages, whole
from .environment import environment, write_json
from .timing import timed
from .video_report import film_sheet, make_rows, make_table
from .video_workload import VIDEO_WORKLOADS, VideoWorkload, video_batches
from .workload import CALIBRATION_SEED, EVALUATION_SEED, SECOND_SEED

UNCACHED, OTHER_SEEDS, INDUCTOR = "uncached", "other seeds", "inductor"


@dataclass(frozen=True)
class Settings:
    """What is run. Each batch of clips is also one round of timing."""

    model: str
    steps: int
    clips: int = 24
    batch: int = 4
    calibration_batches: int = 4
    speedups: tuple[float, ...] = (2.0, 3.0, 5.0)
    inner: str = "inductor"
    seed: int = EVALUATION_SEED


class Study:
    """One run: the compiled model, its plans, and what was sampled so far."""

    def __init__(self, settings: Settings, work: Path, progress: Progress) -> None:
        self.settings = settings
        self.work = work
        self.progress = progress
        self.workload: VideoWorkload = VIDEO_WORKLOADS[settings.model]()
        torch.compiler.reset()
        plain = self.workload.denoiser
        options: Any = {"inner": settings.inner, "remember": False}
        self.model: Any = torch.compile(plain, backend="ditcache", options=options)
        self.inductor: Any = torch.compile(plain, backend=settings.inner)
        self.plans: dict[str, Plan] = {}

    def batches(self, seed: int, count: int | None = None, *, calibration: bool = False) -> Any:
        """Batches of the held-out (or calibration) inputs, seeds from `seed` on."""
        count = count or self.settings.clips
        size = self.settings.batch
        return video_batches(self.workload, count, size, seed=seed, calibration=calibration)

    def plan(self) -> None:
        """Calibrate and make the plans, or read those of the run that is resumed."""
        settings = self.settings
        task = self.progress.add_task("calibrate and plan", total=settings.calibration_batches)
        paths = {f"{s:g}x": self.work / f"plan-{s:g}x.json" for s in settings.speedups}
        if all(path.is_file() for path in paths.values()):
            self.plans = {name: Plan.load(path) for name, path in paths.items()}
            self.progress.advance(task, settings.calibration_batches)
            return
        count = settings.calibration_batches * settings.batch
        batches = self.batches(CALIBRATION_SEED, count, calibration=True)

        def generate(i: int) -> None:
            self.workload.sample(self.model, batches[i], settings.steps)
            self.progress.advance(task)

        profile = ditcache.calibrate(self.model, generate, settings.calibration_batches)
        for speedup in settings.speedups:
            plan = profile.plan(speedup=speedup)
            plan.save(paths[f"{speedup:g}x"])
            self.plans[f"{speedup:g}x"] = plan

    def sample(self) -> None:
        """Run every variant on every batch, in turn, after one untimed call of each."""
        names = [UNCACHED, *self.plans, INDUCTOR]
        batches = self.batches(self.settings.seed)
        others = self.batches(self.settings.seed + SECOND_SEED)
        jobs = [(name, i, b) for i, b in enumerate(batches) for name in names]
        jobs += [(OTHER_SEEDS, i, b) for i, b in enumerate(others)]
        task = self.progress.add_task("sample and time", total=len(jobs))
        warm: set[str] = set()
        for name, index, batch in jobs:
            if not self._path(name, index).is_file():
                if name not in warm:
                    self._run(name, batch)
                    warm.add(name)
                self._keep(name, index, batch)
            self.progress.advance(task)

    def latents(self, name: str) -> list[Tensor]:
        """What a variant sampled, batch by batch."""
        count = len(self.batches(self.settings.seed))
        return [load_file(self._path(name, i))["latents"] for i in range(count)]

    def records(self, name: str) -> list[dict[str, float]]:
        """Seconds, processor seconds and MACs of a variant, batch by batch."""
        count = len(self.batches(self.settings.seed))
        return [json.loads(self._path(name, i, ".json").read_text()) for i in range(count)]

    def _keep(self, name: str, index: int, batch: Any) -> None:
        before = ditcache.summary(self.model)
        spent = time.process_time()
        latents, seconds = timed(lambda: self._run(name, batch))
        after = ditcache.summary(self.model)
        if after.fallbacks != before.fallbacks:
            raise RuntimeError(f"{name} fell back to computing: {after.fallbacks}")
        macs = after.macs - before.macs
        if name == UNCACHED:  # the model's own work: what is hoisted counts as saved
            macs = after.macs_uncached - before.macs_uncached
        record = {
            "seconds": round(seconds, 4),
            "cpu_seconds": round(time.process_time() - spent, 4),
            "macs": macs / self.settings.batch,
        }
        self._path(name, index, ".json").write_text(json.dumps(record))
        save_file({"latents": latents.contiguous()}, self._path(name, index))

    def _run(self, name: str, batch: Any) -> Tensor:
        if name == INDUCTOR:
            return self.workload.sample(self.inductor, batch, self.settings.steps)
        if name in self.plans:
            ditcache.apply(self.model, self.plans[name])
        else:
            ditcache.remove(self.model)
        return self.workload.sample(self.model, batch, self.settings.steps)

    def _path(self, name: str, index: int, suffix: str = ".safetensors") -> Path:
        return self.work / f"{name.replace(' ', '-')}-{index}{suffix}"


def run(settings: Settings, out: Path, work: Path, console: Console) -> dict[str, Any]:
    """Run the study and write its files; gives the summary."""
    work.mkdir(parents=True, exist_ok=True)
    _same_settings(settings, work / "settings.json")
    with Progress(console=console) as progress:
        study = Study(settings, work, progress)
        # The first call compiles; the summary that `sample` reads exists only after it.
        study.workload.sample(study.model, study.batches(study.settings.seed)[0], 2)
        study.plan()
        study.sample()
        names = [UNCACHED, *study.plans, OTHER_SEEDS]
        task = progress.add_task("decode and judge", total=len(names))
        clips: dict[str, Tensor] = {}
        for name in names:
            clips[name] = torch.cat([study.workload.clips(x) for x in study.latents(name)])
            progress.advance(task)
    rows = make_rows(
        clips,
        {name: study.records(name) for name in (UNCACHED, *study.plans, INDUCTOR)},
        study.plans,
        settings.steps,
    )
    inputs = study.workload.inputs
    captions = [
        c for b in study.batches(study.settings.seed) for c in inputs[b.conditions].captions
    ]
    summary: dict[str, Any] = {
        "environment": environment("bench.video"),
        "settings": asdict(settings),
        "rows": rows,
        "captions": captions,
        "notes": [
            "uncached: the same compiled model after ditcache.remove, every step computed",
            "other seeds: uncached again from other noise; its temporal columns show seed noise",
            "change: relative to uncached, of means over clips; temporal metrics are means over "
            "neighbouring frames",
            "walls: one batch's denoising loop; cpu: processor seconds of the same",
        ],
    }
    write_json(out / f"video-{settings.model}.json", summary)
    shown = {name: clips[name][:12] for name in (UNCACHED, *study.plans)}
    film_sheet(shown, captions[:12]).save(out / f"video-{settings.model}.png", optimize=True)
    console.print(make_table(rows, f"{settings.model}: {len(captions)} clips"))
    return summary


def _same_settings(settings: Settings, path: Path) -> None:
    """Keep the settings beside the kept results; refuse to mix results of two settings."""
    mine = json.loads(json.dumps(asdict(settings)))
    if path.is_file() and json.loads(path.read_text()) != mine:
        raise SystemExit(f"{path.parent} holds results of other settings; delete it or give --work")
    path.write_text(json.dumps(mine))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse options and run."""
    parser = Parser("bench.video", __doc__)
    parser.add_argument("--model", choices=sorted(VIDEO_WORKLOADS), required=True)
    parser.add_argument("--steps", type=whole, help="50 for Wan, 25 for SVD, if not given")
    parser.add_argument("--clips", type=whole, default=Settings.clips)
    parser.add_argument("--batch", type=whole, default=Settings.batch)
    seed = "first seed of the held-out clips"
    parser.add_argument("--seed", type=int, default=Settings.seed, help=seed)
    parser.add_argument(
        "--inner", choices=COMPILERS, default="inductor", help="compiler of the parts"
    )
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, no use")
    parser.add_argument("--out", type=folder, default=Path("out/video"))
    parser.add_argument("--work", type=folder, help="kept results; out/video/MODEL if not given")
    args = parser.parse_args(arguments)
    plain_messages()
    steps = args.steps or VIDEO_WORKLOADS[args.model].steps
    settings = Settings(args.model, steps, args.clips, args.batch, inner=args.inner, seed=args.seed)
    if args.quick:
        settings = replace(
            settings,
            steps=8,
            clips=2,
            batch=2,
            calibration_batches=1,
            speedups=(2.0,),
            inner="eager",
        )
    run(settings, args.out, args.work or Path("out/video") / args.model, Console(width=140))


if __name__ == "__main__":
    main()
