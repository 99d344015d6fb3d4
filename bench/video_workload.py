"""The two small video models as workloads: sampled to latents, decoded to clips of frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from ditcache.models.tiny import (
    FirstFrames,
    VideoPrompts,
    load_svd_emoji,
    load_wan_emoji,
    svd_emoji_frames,
    wan_emoji_prompts,
)
from torch import Tensor, nn

from .workload import Batch, split_batches


class VideoWorkload(ABC):
    """A video model, its sampler and its inputs: a diffusers pipeline, one part of it exchanged."""

    name: str
    steps: int
    part: str
    """The pipeline's name of the denoiser."""

    def __init__(
        self, pipeline: Any, inputs: VideoPrompts | FirstFrames, guidance: float, **settings: float
    ) -> None:
        self.guidance = guidance
        self.pipeline = pipeline
        self.denoiser: nn.Module = getattr(pipeline, self.part)
        self.inputs = inputs
        self.settings = settings

    def sample(self, model: nn.Module, batch: Batch, steps: int) -> Tensor:
        """Return the final latents of one whole denoising loop."""
        setattr(self.pipeline, self.part, model)
        # A clip's generator draws all its noise: that of its latents and that of its picture.
        return self.pipeline(
            **self.inputs[batch.conditions].kwargs(),
            height=32,
            width=32,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
            output_type="latent",
            **self.settings,
        ).frames

    @abstractmethod
    def clips(self, latents: Tensor) -> Tensor:
        """Latents as clips [N, T, 3, H, W] in [0, 1]."""


class WanEmoji(VideoWorkload):
    """The small Wan: text to video by UniPC of order 2, guidance as a second call a step."""

    name = "wan-emoji"
    steps = 50
    part = "transformer"

    def __init__(self, guidance: float = 3.0) -> None:
        inputs = wan_emoji_prompts()
        super().__init__(load_wan_emoji(), inputs, guidance, guidance_scale=guidance, num_frames=9)

    @torch.no_grad()
    def clips(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        shape = (1, -1, 1, 1, 1)
        std = torch.tensor(vae.config.latents_std).view(shape)
        mean = torch.tensor(vae.config.latents_mean).view(shape)
        video = vae.decode(latents * std + mean, return_dict=False)[0]
        return (video / 2 + 0.5).clamp(0, 1).transpose(1, 2)


class SvdEmoji(VideoWorkload):
    """The small image-to-video UNet: Euler on EDM's sigmas, both guidance branches in one batch."""

    name = "svd-emoji"
    steps = 25
    part = "unet"

    def __init__(self, guidance: float = 2.0) -> None:
        inputs = svd_emoji_frames()
        super().__init__(load_svd_emoji(), inputs, guidance, max_guidance_scale=guidance)

    @torch.no_grad()
    def clips(self, latents: Tensor) -> Tensor:
        video = self.pipeline.decode_latents(latents, latents.shape[1], latents.shape[1])
        return (video / 2 + 0.5).clamp(0, 1).transpose(1, 2)


VIDEO_WORKLOADS: dict[str, type[WanEmoji] | type[SvdEmoji]] = {
    WanEmoji.name: WanEmoji,
    SvdEmoji.name: SvdEmoji,
}


def video_batches(
    workload: VideoWorkload, count: int, size: int, *, seed: int, calibration: bool = False
) -> list[Batch]:
    """`count` clips over the held-out (or calibration) inputs, in batches of `size`."""
    first = 0 if calibration else workload.inputs.calibration_count
    total = workload.inputs.calibration_count if calibration else len(workload.inputs) - first
    return split_batches([first + i % total for i in range(count)], size, seed)
