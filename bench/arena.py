"""Where contestants meet: one model, its samples, and the uncached pictures they are judged by."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ditcache
import torch
from ditcache import Profile
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .macs import counted
from .quality import Pictures
from .video_contest import SHEETS
from .workload import (
    CALIBRATION_SEED,
    EVALUATION_SEED,
    SECOND_SEED,
    WORKLOADS,
    Batch,
    Workload,
)

MODELS = (*WORKLOADS, *SHEETS)
TUNED_ON = ("model", "batch", "calibration", "steps")
"""The part of a setting that tuning depends on."""


@dataclass(frozen=True)
class Setting:
    """What is compared: `samples` held-out samples, tuned and planned on `calibration` others.

    Both are topped up to whole batches, so that no second shape is compiled. `seed` is the first
    held-out sample's: another one judges on noise that no choice has seen.
    """

    model: str
    samples: int = 256
    batch: int = 8
    calibration: int = 16
    steps: int = 50
    seed: int = EVALUATION_SEED


class Arena:
    """One model under one setting; what is costly is computed once and kept in `work`.

    `key` names weights and setting: files and cells of another model or setting are never mixed
    with these. `tuning_key` leaves out what is held out: no choice of knobs depends on it.
    """

    def __init__(self, setting: Setting, work: Path) -> None:
        self.setting = setting
        self.workload = load_workload(setting.model)
        kept = asdict(setting)
        self.key = _key(kept, self.workload)
        self.tuning_key = _key({k: kept[k] for k in TUNED_ON}, self.workload)
        self.folder = work / f"{setting.model.replace(':', '.')}-{self.key}"
        make = self.workload.batches
        self.held_out = make(setting.samples, setting.batch, seed=setting.seed)
        self.second = make(setting.samples, setting.batch, seed=setting.seed + SECOND_SEED)
        self.calibration = make(
            setting.calibration, setting.batch, seed=CALIBRATION_SEED, calibration=True
        )
        if _seeds(self.calibration) & (_seeds(self.held_out) | _seeds(self.second)):
            raise ValueError(
                f"held-out samples from seed {setting.seed} on share noise with those that plans "
                f"are made on (from {CALIBRATION_SEED} on): choose another first seed"
            )
        self.captions = [c for b in self.held_out for c in self.workload.captions(b)]

    @functools.cached_property
    def compiled(self) -> Any:
        """The model compiled by ditcache with eager parts, so that MACs can be counted."""
        # Code that was compiled for another copy of this model in this process is not ours.
        torch.compiler.reset()
        model: Any = torch.compile(
            self.workload.denoiser,
            backend="ditcache",
            options={"inner": "eager", "remember": False},
        )
        self.workload.sample(model, self.calibration[0], 2)  # the first call compiles
        ditcache.remove(model)
        return model

    @functools.cached_property
    def profile(self) -> Profile:
        """Ditcache's recording of the calibration samples."""
        profile = ditcache.calibrate(self.compiled, self.calibrate, len(self.calibration))
        ditcache.remove(self.compiled)
        return profile

    def calibrate(self, i: int) -> Tensor:
        """Run calibration batch i on the compiled model."""
        return self.workload.sample(self.compiled, self.calibration[i], self.setting.steps)

    def copy_of_model(self) -> nn.Module:
        """Give a model of its own to a library that hangs hooks into it."""
        return copy.deepcopy(self.workload.denoiser)

    def uncached(self, name: str, batches: list[Batch]) -> Tensor:
        """Latents of the plain, uncompiled model; kept batch by batch, so a kill costs one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        parts: list[Tensor] = []
        for index, batch in enumerate(batches):
            path = self.folder / f"{name}-{index:03}.safetensors"
            if not path.exists():
                latents = self.workload.sample(self.workload.denoiser, batch, self.setting.steps)
                part = path.with_suffix(f".{os.getpid()}")  # another process may do the same
                save_file({"latents": latents.contiguous()}, part)
                part.rename(path)
            parts.append(load_file(path)["latents"])
        return torch.cat(parts)

    @functools.cached_property
    def macs_uncached(self) -> float:
        """MACs of one uncached sample over a whole generation, counted on a short one."""
        steps, batch = 4, self.calibration[0]
        run = self.workload.sample
        _, macs = counted(lambda: run(self.workload.denoiser, batch, steps))
        return macs / len(batch.seeds) * self.setting.steps / steps

    @functools.cached_property
    def first(self) -> Pictures:
        """Uncached pictures of the held-out samples: the reference."""
        return self.pictures(self.uncached("first", self.held_out))

    @functools.cached_property
    def other_seeds(self) -> Pictures:
        """Uncached pictures of the same captions with other seeds: the noise."""
        return self.pictures(self.uncached("second", self.second))

    @functools.cached_property
    def calibration_images(self) -> Tensor:
        """Uncached pictures of the calibration samples, in order."""
        return self.decode(self.uncached("calibration", self.calibration))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] of latents."""
        return torch.cat([self.workload.pictures(part) for part in latents.split(32)])

    def pictures(self, latents: Tensor) -> Pictures:
        """Pictures with their features and maps."""
        images = self.decode(latents)
        return Pictures(images, *self.workload.look(images))


def load_workload(name: str) -> Workload:
    """A workload by its name, or by `package.module:factory`.

    Raises ValueError for a name that is neither.
    """
    known = WORKLOADS | SHEETS
    if name in known:
        return known[name]()
    module, _, factory = name.partition(":")
    if not factory:
        raise ValueError(
            f"no model {name!r}: expected one of {', '.join(MODELS)} or package.module:factory "
            "of a ditcache.bench.workload.Workload"
        )
    try:
        made = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: {error}") from error
    return made()


def _seeds(batches: list[Batch]) -> set[int]:
    return {seed for batch in batches for seed in batch.seeds}


def _key(kept: dict[str, Any], workload: Workload) -> str:
    kept = kept | {"guidance": workload.guidance}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for parameter in workload.denoiser.parameters():
        digest.update(parameter.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
