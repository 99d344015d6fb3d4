"""Samples block by block: generated under every plan, scored, and written as one file.

A block's content depends on its index alone (prompts, seeds, and who shares a batch), never on when
or by which process it is made: a run that is killed and goes on gives the same bits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ditcache
import torch
from ditcache import Plan
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import metrics
from ..bad_input import BadInput
from ..compare.inputs import Sample
from ..compare.judge import DISTANCE, distances
from ..compare.subjects import Subject
from ..features import looks
from .scorers import Distance, Panel
from .settings import UNCACHED, Ranks, Settings
from .videos import Videos

SHOWN = 16  # samples whose pictures are kept for the page
Tick = Callable[[int], None]


WORK = ("calls", "forecast", "macs", "macs_uncached")


class UnusablePlan(BadInput):
    """A plan that would leave everything as it is; says why."""


class Blocks:
    """The folder of finished blocks of one setting."""

    def __init__(self, folder: Path, key: str, settings: Settings) -> None:
        self.folder = folder / key
        self.key = key
        self.settings = settings

    def path(self, block: int) -> Path:
        """The name has the block's length: a longer run makes a short last block again."""
        length = len(self.settings.indices(block))
        return self.folder / f"{block:06}x{length}.safetensors"

    def done(self, block: int) -> bool:
        """Whether the block is there and whole."""
        try:
            with safe_open(self.path(block), "pt"):
                return True
        except (OSError, SafetensorError):
            return False

    def write(self, block: int, tensors: dict[str, Tensor]) -> None:
        path = self.path(block)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        save_file({k: v.contiguous() for k, v in tensors.items()}, part)
        part.replace(path)

    def column(self, name: str) -> Iterator[Tensor]:
        """Give one tensor of every block, by index; blocks without it are passed over."""
        for block in range(self.settings.blocks):
            with safe_open(self.path(block), "pt") as file:
                if name in file.keys():  # noqa: SIM118
                    yield file.get_tensor(name)

    def names(self) -> list[str]:
        with safe_open(self.path(0), "pt") as file:
            return sorted(file.keys())


class Producer:
    """Makes blocks with one copy of the model, and files of its `videos` if somebody wants them."""

    def __init__(
        self,
        settings: Settings,
        subject: Subject,
        plans: dict[str, Plan],
        panel: Panel,
        videos: Videos | None = None,
    ) -> None:
        self.settings = settings
        self.subject = subject
        self.panel = panel
        self.plans = plans
        self.videos = videos
        self.name, self.plain = next(iter(subject.denoisers.items()))
        self.model: Any = None
        if plans:
            self.model = compiled(subject, settings.inner)

    def run(self, blocks: Blocks, ranks: Ranks, tick: Tick) -> None:
        """Make this process's missing blocks."""
        for block in ranks.mine(self.settings.blocks):
            if not (blocks.done(block) and self._filmed(block)):
                blocks.write(block, self.make(block))
            tick(len(self.settings.indices(block)))

    def _filmed(self, block: int) -> bool:
        variants, indices = (UNCACHED, *self.plans), self.settings.indices(block)
        return self.videos is None or self.videos.there(variants, indices)

    @torch.no_grad()
    def make(self, block: int) -> dict[str, Tensor]:
        """One block under every plan, scored."""
        indices = self.settings.indices(block)
        samples = self.subject.samples
        chosen = [samples[i] for i in indices]
        # A short last block is topped up: one batch size, one compiled graph.
        padded = chosen + [chosen[-1]] * (self.settings.block - len(chosen))
        captions = [s.caption or "" for s in chosen]
        found: dict[str, Tensor] = {}
        reference: Tensor | None = None
        for variant in (UNCACHED, *self.plans):
            started = time.perf_counter()
            frames, work = self._generate(variant, padded)
            frames = frames[: len(chosen)]
            seconds = (time.perf_counter() - started) / len(padded)
            if work is not None:
                found[f"{variant}/work"] = work
            if self.videos is not None:
                self.videos.write(variant, indices, frames)
            found[f"{variant}/seconds"] = torch.full((len(chosen),), seconds, dtype=torch.float64)
            found |= {f"{variant}/{k}": v for k, v in self._score(frames, captions).items()}
            if reference is None:
                reference = frames
            else:
                paired = pairs(frames, reference, self.panel.distances)
                found |= {f"{variant}/{k}": v for k, v in paired.items()}
            if indices.start < SHOWN:
                found[f"{variant}/pictures"] = frames.mul(255).round().byte()
        return found

    def _generate(self, variant: str, samples: list[Sample]) -> tuple[Tensor, Tensor | None]:
        """Frames, and of a plan what ran: its calls, those forecast, MACs, MACs uncached."""
        if variant == UNCACHED:
            setattr(self.subject.pipeline, self.name, self.plain)
            return generate(self.subject, samples), None
        setattr(self.subject.pipeline, self.name, self.model)
        ditcache.apply(self.model, self.plans[variant])
        before = ditcache.summary(self.model)
        frames = generate(self.subject, samples)
        after = ditcache.summary(self.model)
        work = [getattr(after, name) - getattr(before, name) for name in WORK]
        plan = self.plans[variant]
        if not work[1] and any(len(r.computed) < len(plan.timesteps) for r in plan.regions):
            why = "; ".join(after.fallbacks) or "; ".join(after.uncached) or "no reason known"
            raise UnusablePlan(
                f"{variant}: this plan of {len(plan.timesteps)} steps forecasts none of the "
                f"{self.subject.steps} steps of this run ({why})"
            )
        return frames, torch.tensor(work, dtype=torch.int64)

    def _score(self, frames: Tensor, captions: list[str]) -> dict[str, Tensor]:
        """Frames [N, F, 3, H, W]; a video's features and scores are means over its frames."""
        count, length = frames.shape[:2]
        flat = frames.flatten(0, 1)
        repeated = [c for c in captions for _ in range(length)]
        seen = {name: space(flat) for name, space in self.panel.spaces.items()}
        found = {
            f"features:{name}": rows.float().view(count, length, -1).mean(1)
            for name, rows in seen.items()
        }
        if any(captions):
            for scorer in self.panel.scorers:
                values = scorer(flat, repeated, seen)
                found[f"score:{scorer.name}"] = values.double().view(count, length).mean(1)
        return found


def pairs(frames: Tensor, reference: Tensor, others: Mapping[str, Distance]) -> dict[str, Tensor]:
    """PSNR (dB), SSIM and perceptual distances of each sample [N, F, ...] to the uncached one."""
    found: dict[str, list[float]] = {"psnr": [], "ssim": [], DISTANCE: []}
    found |= {name: [] for name in others}
    for made, other in zip(frames, reference, strict=True):
        found["psnr"].append(float(metrics.psnr(made, other).mean()))
        found["ssim"].append(float(metrics.ssim(made, other).mean()))
        maps = looks(made)[1], looks(other)[1]
        found[DISTANCE].append(float(distances(*maps).mean()))
        for name, distance in others.items():
            found[name].append(float(distance(made, other).mean()))
    return {f"pair:{k}": torch.tensor(v, dtype=torch.float64) for k, v in found.items()}


def compiled(subject: Subject, inner: str) -> Any:
    """The subject's denoiser with ditcache as its backend."""
    name, plain = next(iter(subject.denoisers.items()))
    options: dict[str, Any] = {"inner": inner, "remember": False}
    model = torch.compile(plain, backend="ditcache", options=options)
    setattr(subject.pipeline, name, model)
    return model


@torch.no_grad()
def generate(subject: Subject, samples: list[Sample]) -> Tensor:
    """One batch: float32 frames [N, F, 3, H, W] in [0, 1] on the CPU."""
    arguments = dict(subject.arguments)
    for name in samples[0].arguments:
        values = [s.arguments[name] for s in samples]
        arguments[name] = torch.cat(values) if isinstance(values[0], Tensor) else values
    made = subject.pipeline(
        **arguments,
        num_inference_steps=subject.steps,
        generator=[torch.Generator().manual_seed(s.seed) for s in samples],
        output_type="pt",
    )
    frames = made.images[:, None] if subject.kind == "text-to-image" else made.frames
    return torch.as_tensor(frames).float().clamp(0, 1).cpu()
