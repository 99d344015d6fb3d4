"""Train the small autoencoder: 64x64 RGB emoji <-> 16x16 latents of six channels.

Run as `python -m ditcache.models.train.autoencoder --minutes 12 --out models/tiny/flux-emoji/vae`.

There are no perceptual weights to lean on, so edges and coarser scales enter the loss instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from ..data import emoji
from .common import TINY, write_half
from .fitting import Loss, add_options, begin, fit


def build(latent_channels: int = 6) -> AutoencoderKL:
    """Build the untrained autoencoder (factor 4, no attention: 64x64 needs none)."""
    make: Any = AutoencoderKL  # annotated as taking tuples of one level
    return make(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 at three scales plus L1 of horizontal and vertical differences; inputs [N, 3, H, W]."""
    loss = F.l1_loss(output, target)
    for axis in (-1, -2):
        loss = loss + F.l1_loss(output.diff(dim=axis), target.diff(dim=axis))
    for factor in (2, 4):
        coarse = F.avg_pool2d(output, factor), F.avg_pool2d(target, factor)
        loss = loss + 0.5 * F.l1_loss(*coarse)
    return loss


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Posterior means of uint8 images [N, 3, H, W], in the autoencoder's own units."""
    parts = [_posterior(vae, part / 127.5 - 1).mode() for part in images.split(64)]
    return torch.cat(parts)


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """Mean over images of the PSNR in dB of encode-decode, peak 255."""
    values: list[torch.Tensor] = []
    for part in images.split(64):
        target = part / 127.5 - 1
        decoded = _decode(vae, _posterior(vae, target).mode()).clamp(-1, 1)
        values.append(picture_psnr(decoded, target))
    return float(torch.cat(values).mean())


def picture_psnr(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """PSNR in dB of each picture [..., 3, H, W] in [-1, 1], flat; at most 80."""
    mse = ((output - target) / 2).square().mean(dim=(-3, -2, -1)).clamp_min(1e-8)
    return -10 * mse.log10().flatten()


def train(args: argparse.Namespace) -> None:
    """Run or resume the training; the averaged weights are written every few minutes."""
    begin(args)
    images = emoji(args.font).images
    vae = build(args.latent_channels)

    def loss_of(_step: int) -> Loss:
        target = images[torch.randint(len(images), (args.batch,))] / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = _posterior(vae, target)
            output = _decode(vae, posterior.sample()).float()
        rebuilt = reconstruction_loss(output, target)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return rebuilt + args.kl_weight * kl, {"rebuilt": rebuilt, "kl": kl}

    def write(averaged: AutoencoderKL) -> None:
        scale_latents(averaged, images[::4])
        write_half(averaged, args.out)

    fit(
        vae,
        loss_of,
        args,
        name="autoencoder",
        write=write,
        log_to=args.out.parent / "autoencoder_log.json",
        judge=lambda averaged: {"psnr": psnr(averaged, images)},
    )


def scale_latents(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Put the scale and shift of the latents of uint8 images [N, 3, H, W] into the config.

    `(latents - shift_factor) * scaling_factor` has zero mean and unit variance over the data, the
    convention of Flux.
    """
    latents = encode_all(vae, images)
    vae.register_to_config(
        shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std())
    )


def _posterior(vae: AutoencoderKL, images: torch.Tensor) -> DiagonalGaussianDistribution:
    return vae.encode(images, return_dict=False)[0]


def _decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    z: Any = latents  # annotated as a FloatTensor, which under autocast it is not
    return vae.decode(z, return_dict=False)[0]


def main() -> None:
    """Parse options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, minutes=12, batch=16, lr=2e-3, ema=0.998, save_minutes=2)
    parser.add_argument("--kl-weight", type=float, default=1e-3, help="per latent number")
    parser.add_argument("--latent-channels", type=int, default=6)
    parser.add_argument("--font", type=Path, help="NotoColorEmoji.ttf")
    parser.add_argument("--out", type=Path, default=TINY / "flux-emoji" / "vae")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
