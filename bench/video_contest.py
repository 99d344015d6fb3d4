"""The small video models in the contest: a clip is judged as one picture of all its frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .features import SPACE, features, looks
from .solvers import EulerAdamsBashforth2, Solver
from .video_workload import SvdEmoji, VideoWorkload, WanEmoji, video_batches
from .workload import Batch

COLUMNS = 3


class Sheets(VideoWorkload):
    """A video model whose pictures are contact sheets of all frames, three in a row."""

    space = SPACE

    def pictures(self, latents: Tensor) -> Tensor:
        clips = self.clips(latents)
        short = -clips.shape[1] % COLUMNS
        if short:  # the last row is filled up with its last frame
            clips = torch.cat([clips, clips[:, -1:].expand(-1, short, -1, -1, -1)], dim=1)
        rows = [torch.cat(list(row.unbind(1)), dim=-1) for row in clips.split(COLUMNS, dim=1)]
        return torch.cat(rows, dim=-2)

    def embed(self, pictures: Tensor) -> Tensor:
        return features(pictures)

    def look(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        return looks(pictures)

    def captions(self, batch: Batch) -> list[str]:
        return [self.inputs.captions[i] for i in batch.conditions]

    def real(self) -> None:
        """No features of real clips come with the package."""

    def batches(
        self, count: int, size: int, *, seed: int, calibration: bool = False
    ) -> list[Batch]:
        return video_batches(self, count, size, seed=seed, calibration=calibration)


class WanSheets(Sheets, WanEmoji):
    """Text to video by UniPC, two model calls a step."""

    batched_guidance = False
    solvers: tuple[Solver, ...] = ("euler",)
    """Its own one, UniPC of order 2, under the name of the others' default."""

    def sample(
        self, model: torch.nn.Module, batch: Batch, steps: int, *, solver: Solver = "euler"
    ) -> Tensor:
        return super().sample(model, batch, steps)

    def position(self) -> tuple[int, float]:
        index = self.pipeline.scheduler.step_index or 0
        return index, float(self.pipeline.scheduler.sigmas[index])

    def latent_pictures(self, hidden: Tensor) -> list[Tensor]:
        return list(hidden)


class SvdSheets(Sheets, SvdEmoji):
    """Image to video by Euler's method on EDM's sigmas, both guidance branches in one batch."""

    batched_guidance = True
    solvers: tuple[Solver, ...] = ("euler", "ab2")

    def __init__(self, guidance: float = 2.0) -> None:
        super().__init__(guidance)
        own = self.pipeline.scheduler
        self.schedulers: dict[Solver, Any] = {
            "euler": own,
            "ab2": EulerAdamsBashforth2.from_config(own.config),
        }

    def sample(
        self, model: torch.nn.Module, batch: Batch, steps: int, *, solver: Solver = "euler"
    ) -> Tensor:
        self.pipeline.scheduler = self.schedulers[solver]
        return super().sample(model, batch, steps)

    def position(self) -> tuple[int, float]:
        """Step index, and the share of steps still to come: EDM's sigmas do not end at 1."""
        scheduler = self.pipeline.scheduler
        index = scheduler.step_index or 0
        return index, 1 - index / len(scheduler.timesteps)

    def latent_pictures(self, hidden: Tensor) -> list[Tensor]:
        return list(hidden.transpose(1, 2))


SHEETS: dict[str, type[WanSheets] | type[SvdSheets]] = {
    WanSheets.name: WanSheets,
    SvdSheets.name: SvdSheets,
}
