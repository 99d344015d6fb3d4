"""Distil the small image-to-video model: guidance into one call, or a generation into four steps.

Run as `python -m ditcache.models.train.svd_distill guidance --minutes 10`, or `… consistency`.

`guidance` teaches a copy of the UNet to give the guided velocity by itself: same scheduler, same
steps, half of the work (`max_guidance_scale=1`). `consistency` teaches it to jump from any noise
level to the clip (consistency distillation of the guided model by Euler steps between
neighbouring levels): four steps of diffusers' CMStochasticIterativeScheduler, no guidance.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    UNetSpatioTemporalConditionModel,
)
from torch import Tensor, nn

from .common import TINY, planar_temporal_convolutions
from .distilling import copies, distil, distillation_parser, pseudo_huber
from .fitting import begin
from .svd import SIGMA_LOG_MEAN, SIGMA_LOG_STD, Batch, prepare, velocity_of

SIGMA_MIN, SIGMA_MAX, LEVELS = 0.002, 100.0, 40


def scheduler() -> CMStochasticIterativeScheduler:
    """Build the four-step model's scheduler; its latents have unit variance."""
    return CMStochasticIterativeScheduler(
        num_train_timesteps=LEVELS,
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        sigma_data=1.0,
        clip_denoised=False,
    )


@torch.no_grad()
def guided_velocity(
    teacher: UNetSpatioTemporalConditionModel,
    x: Tensor,
    sigma: Tensor,
    batch: Batch,
    guidance: float,
) -> Tensor:
    """Velocity with the pipeline's guidance: scale 1 at the first frame, `guidance` at the last."""
    null = Batch(
        batch.latents,
        torch.zeros_like(batch.first),
        torch.zeros_like(batch.embedded),
        batch.time_ids,
    )
    free = velocity_of(teacher, x, sigma, null)
    scale = torch.linspace(1, guidance, x.shape[1]).view(1, -1, 1, 1, 1)
    return free + scale * (velocity_of(teacher, x, sigma, batch) - free)


def denoised_by_velocity(x: Tensor, sigma: Tensor, velocity: Tensor) -> Tensor:
    """EDM's estimate of the clean latents, as EulerDiscreteScheduler computes it."""
    level = sigma.view(-1, 1, 1, 1, 1)
    square = level.square() + 1
    return x / square - velocity * level / square.sqrt()


class Student(nn.Module):
    """The four-step model: what CMStochasticIterativeScheduler makes of the UNet's output."""

    def __init__(self, unet: UNetSpatioTemporalConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        """Clean latents from x = data + sigma * noise [B, T, C, h, w]."""
        level = sigma.view(-1, 1, 1, 1, 1)
        skip = 1 / ((level - SIGMA_MIN).square() + 1)
        out = (level - SIGMA_MIN) / (level.square() + 1).sqrt()
        return skip * x + out * velocity_of(self.unet, x, sigma, batch, time_scale=1000.0)


@torch.no_grad()
def consistency_unet(
    teacher: UNetSpatioTemporalConditionModel,
) -> UNetSpatioTemporalConditionModel:
    """Copy the teacher into the conventions of consistency models.

    Their output has the opposite sign, and their timestep is 1000 times larger: the first layer of
    the time embedding is fitted anew, by least squares over the noise levels, to give what it gave.
    """
    unet = copy.deepcopy(teacher)
    unet.conv_out.weight.neg_()
    bias = unet.conv_out.bias
    assert bias is not None
    bias.neg_()
    times = torch.linspace(SIGMA_MIN**0.25, SIGMA_MAX**0.25, 4096).log()
    layer: Any = unet.time_embedding.linear_1
    wanted = layer(unet.time_proj(times)).double()
    seen = torch.cat([unet.time_proj(1000 * times), torch.ones(len(times), 1)], dim=1).double()
    ridge = 1e-4 * len(times) * torch.eye(seen.shape[1], dtype=torch.float64)
    fitted = torch.linalg.solve(seen.T @ seen + ridge, seen.T @ wanted).float()
    layer.weight.copy_(fitted[:-1].T)
    layer.bias.copy_(fitted[-1])
    return unet


def consistency_loss(
    student: Student,
    target: Student,
    teacher: UNetSpatioTemporalConditionModel,
    batch: Batch,
    guidance: float,
) -> Tensor:
    """Pseudo-Huber distance of the jumps from two neighbouring points of one trajectory."""
    grid = scheduler().sigmas.float()
    at = torch.randint(len(grid) - 1, (len(batch.latents),))
    high, low = grid[at], grid[at + 1]
    x = batch.latents + high.view(-1, 1, 1, 1, 1) * torch.randn_like(batch.latents)
    clean = denoised_by_velocity(x, high, guided_velocity(teacher, x, high, batch, guidance))
    ratio = (low / high).view(-1, 1, 1, 1, 1)
    with torch.no_grad():
        wanted = target(clean + ratio * (x - clean), low, batch)
    return pseudo_huber(student(x, high, batch), wanted)


def guidance_loss(
    student: UNetSpatioTemporalConditionModel,
    teacher: UNetSpatioTemporalConditionModel,
    batch: Batch,
    guidance: float,
) -> Tensor:
    """Mean squared error to the guided velocity at random noise levels."""
    sigma = (SIGMA_LOG_MEAN + SIGMA_LOG_STD * torch.randn(len(batch.latents))).exp()
    x = batch.latents + sigma.view(-1, 1, 1, 1, 1) * torch.randn_like(batch.latents)
    wanted = guided_velocity(teacher, x, sigma, batch, guidance)
    return (velocity_of(student, x, sigma, batch) - wanted).square().mean()


def train(args: argparse.Namespace) -> None:
    """Run or resume the distillation; the averaged weights are written every few minutes."""
    begin(args)
    clips = prepare(args.folder, args.cache, args.count, args.seed)
    teacher = UNetSpatioTemporalConditionModel.from_pretrained(
        str(args.folder / "unet"), dtype=torch.float32
    )
    teacher.requires_grad_(False)
    planar_temporal_convolutions(teacher)
    consistency = args.kind == "consistency"
    unet, averaged = copies(consistency_unet(teacher) if consistency else teacher)
    student, target = Student(unet), Student(averaged)

    def loss_of(_step: int) -> Tensor:
        batch = clips.batch(args.batch, keyframes=False, dropout=0.0)
        if consistency:
            return consistency_loss(student, target, teacher, batch, args.guidance)
        return guidance_loss(unet, teacher, batch, args.guidance)

    distil(
        unet,
        loss_of,
        args,
        name="svd",
        part="unet",
        target=averaged if consistency else None,
        scheduler=scheduler() if consistency else None,
    )


def main() -> None:
    """Parse options and distil; the guidance is the scale at the last frame."""
    parser = distillation_parser(__doc__, TINY / "svd-emoji", guidance=2.0, batch=8, ema=0.95)
    parser.add_argument("--count", type=int, default=256, help="the most animated clips")
    parser.add_argument("--cache", type=Path, help="where the clips are, or are fetched to")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
