"""The small Wan among the contests: a clip is judged as one picture, its frames side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .features import SPACE, features, looks
from .solvers import Solver
from .video_workload import WanEmoji, video_batches
from .workload import Batch

COLUMNS = 3


class WanSheets(WanEmoji):
    """Text to video by UniPC; pictures are contact sheets of all frames, three in a row."""

    space = SPACE
    batched_guidance = False
    solvers: tuple[Solver, ...] = ("euler",)
    """Its own one, UniPC of order 2, under the name of the others' default."""

    def sample(
        self, model: nn.Module, batch: Batch, steps: int, *, solver: Solver = "euler"
    ) -> Tensor:
        return super().sample(model, batch, steps)

    def position(self) -> tuple[int, float]:
        index = self.pipeline.scheduler.step_index or 0
        return index, float(self.pipeline.scheduler.sigmas[index])

    def latent_pictures(self, hidden: Tensor) -> list[Tensor]:
        return list(hidden)

    def pictures(self, latents: Tensor) -> Tensor:
        clips = self.clips(latents)
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
