"""Train the small autoencoder: 64x64 RGB emoji <-> 16x16 latents of six channels.

Run as `python -m ditcache.models.train.autoencoder --minutes 12 --out models/tiny/flux-emoji/vae`.

There are no perceptual weights to lean on, so edges and coarser scales enter the loss instead.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from ..data import emoji
from .common import (
    TINY,
    Ema,
    Log,
    parameters_in_millions,
    resume,
    save_state,
    training_state,
    warmup_cosine,
    write_averaged,
)


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
        mse = ((decoded - target) / 2).square().mean(dim=(1, 2, 3)).clamp_min(1e-8)
        values.append(-10 * mse.log10())
    return float(torch.cat(values).mean())


def train(args: argparse.Namespace) -> None:
    """Run or resume the training, then write the averaged weights."""
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    images = emoji(args.font).images
    vae = build(args.latent_channels)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.99), fused=True)
    ema = Ema(vae, 0.998)
    log = Log(args.work / "autoencoder.json", vars(args))
    state_path = args.work / "autoencoder.state"
    step = resume(state_path, vae, optimizer, ema, log)
    print(f"{parameters_in_millions(vae):.2f}M parameters, {len(images)} images")
    order = torch.Generator().manual_seed(args.seed + step)
    saved = log.seconds
    while (progress := log.seconds / (60 * args.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warmup_cosine(progress)
        target = images[torch.randint(len(images), (args.batch,), generator=order)] / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = _posterior(vae, target)
            output = _decode(vae, posterior.sample()).float()
        rebuilt = reconstruction_loss(output, target)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = rebuilt + args.kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        ema.update(vae, step)
        if step % 50 == 0:
            log.add(step, loss=loss.item(), rebuilt=rebuilt.item(), kl=kl.item())
        if log.seconds - saved > 120:
            saved = log.seconds
            save_state(state_path, training_state(vae, optimizer, ema, step, log.seconds))
            write(vae, ema, images, args.out)
    save_state(state_path, training_state(vae, optimizer, ema, step, log.seconds))
    final = write(vae, ema, images, args.out)
    log.add(step, psnr=psnr(final, images))
    log.write(args.out.parent / "autoencoder_log.json")


def write(vae: AutoencoderKL, ema: Ema, images: torch.Tensor, out: Path) -> AutoencoderKL:
    """Write the averaged autoencoder as fp16 safetensors, scale and shift of latents in its config.

    `(latents - shift_factor) * scaling_factor` has zero mean and unit variance over the data, the
    convention of Flux.
    """
    final: AutoencoderKL = copy.deepcopy(vae).eval()
    ema.copy_to(final)
    latents = encode_all(final, images[::4])
    vae.register_to_config(
        shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std())
    )
    return write_averaged(vae, ema, out)


def _posterior(vae: AutoencoderKL, images: torch.Tensor) -> DiagonalGaussianDistribution:
    return vae.encode(images, return_dict=False)[0]


def _decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    z: Any = latents  # annotated as a FloatTensor, which under autocast it is not
    return vae.decode(z, return_dict=False)[0]


def main() -> None:
    """Parse options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12, help="wall time of training")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kl-weight", type=float, default=1e-3, help="per latent number")
    parser.add_argument("--latent-channels", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--font", type=Path, help="NotoColorEmoji.ttf")
    parser.add_argument("--out", type=Path, default=TINY / "flux-emoji" / "vae")
    parser.add_argument("--work", type=Path, default=Path("out/train"), help="resumable state, log")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
