"""The two small video models as workloads: sampled to latents, decoded to clips of frames."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from ditcache.models.tiny import (
    load_svd_emoji,
    load_wan_emoji,
    svd_emoji_frames,
    wan_emoji_prompts,
)
from ditcache.models.tiny.sets import CaptionedSet
from torch import Tensor, nn

from .workload import Batch, split_batches


class VideoWorkload(Protocol):
    """A video model, its sampler and its inputs."""

    name: str
    steps: int
    denoiser: nn.Module

    @property
    def inputs(self) -> CaptionedSet:
        """What clips are made from."""
        ...

    def sample(self, model: nn.Module, batch: Batch, steps: int) -> Tensor:
        """Return the final latents of one whole denoising loop."""
        ...

    def clips(self, latents: Tensor) -> Tensor:
        """Latents as clips [N, T, 3, H, W] in [0, 1]."""
        ...


class WanEmoji:
    """The small Wan: text to video by UniPC of order 2, guidance as a second call a step."""

    name = "wan-emoji"
    steps = 50

    def __init__(self, guidance: float = 3.0) -> None:
        self.guidance = guidance
        self.pipeline: Any = load_wan_emoji()
        self.denoiser: nn.Module = self.pipeline.transformer
        self.inputs = wan_emoji_prompts()

    def sample(self, model: nn.Module, batch: Batch, steps: int) -> Tensor:
        self.pipeline.transformer = model
        return self.pipeline(
            **self.inputs[batch.conditions].kwargs(),
            height=32,
            width=32,
            num_frames=9,
            guidance_scale=self.guidance,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
            output_type="latent",
        ).frames

    @torch.no_grad()
    def clips(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        shape = (1, -1, 1, 1, 1)
        std = torch.tensor(vae.config.latents_std).view(shape)
        mean = torch.tensor(vae.config.latents_mean).view(shape)
        video = vae.decode(latents * std + mean, return_dict=False)[0]
        return (video / 2 + 0.5).clamp(0, 1).transpose(1, 2)


class SvdEmoji:
    """The small image-to-video UNet: Euler on EDM's sigmas, both guidance branches in one batch."""

    name = "svd-emoji"
    steps = 25

    def __init__(self, guidance: float = 2.0) -> None:
        self.guidance = guidance
        self.pipeline: Any = load_svd_emoji()
        self.denoiser: nn.Module = self.pipeline.unet
        self.inputs = svd_emoji_frames()

    def sample(self, model: nn.Module, batch: Batch, steps: int) -> Tensor:
        self.pipeline.unet = model
        # The pipeline draws the noise of the pictures and of the latents from one generator each.
        return self.pipeline(
            **self.inputs[batch.conditions].kwargs(),
            height=32,
            width=32,
            max_guidance_scale=self.guidance,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
            output_type="latent",
        ).frames

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
