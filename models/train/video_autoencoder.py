"""Train the video autoencoders: frames <-> 8x8 latents.

Run as `python -m ditcache.models.train.video_autoencoder wan --minutes 12`, and the same for `svd`.

`wan` is diffusers' AutoencoderKLWan, causal in time: nine frames of 32x32 become five latent
frames of sixteen channels. `svd` is AutoencoderKLTemporalDecoder: frames are encoded one by one, to
eight channels, and decoded together.

`--refine` goes on with the decoder alone: better pictures from the same latents, so that a
diffusion model already trained on them stays as good as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from ..data_video import PHASES, animated_emoji
from .autoencoder import picture_psnr, reconstruction_loss
from .common import TINY, planar_temporal_convolutions, write_half
from .fitting import Loss, add_options, begin, fit

WAN_CHANNELS, SVD_CHANNELS = 16, 8
SIZE = 32
VideoAutoencoder = AutoencoderKLWan | AutoencoderKLTemporalDecoder


def build_wan() -> AutoencoderKLWan:
    """Build the untrained causal autoencoder: factor 4 in space, 2 in time.

    2x2 pixels are folded into channels before anything is computed.

    The residual kind, with shortcuts around its down- and upsampling, learns much faster.
    """
    return AutoencoderKLWan(
        base_dim=64,
        z_dim=WAN_CHANNELS,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=2,
        scale_factor_spatial=4,
        latents_mean=[0.0] * WAN_CHANNELS,
        latents_std=[1.0] * WAN_CHANNELS,
    )


def build_svd() -> AutoencoderKLTemporalDecoder:
    """Build the untrained autoencoder with a temporal decoder, factor 4 in space."""
    make: Any = AutoencoderKLTemporalDecoder  # annotated as taking tuples of one level
    return make(
        down_block_types=("DownEncoderBlock2D",) * 3,
        # At least 64: the 32 groups of its norms are fixed, and one channel a group loses colour.
        block_out_channels=(64, 64, 96),
        layers_per_block=1,
        latent_channels=SVD_CHANNELS,
        sample_size=32,
        scaling_factor=1.0,
        force_upcast=False,
    )


def posterior(vae: VideoAutoencoder, frames: torch.Tensor) -> DiagonalGaussianDistribution:
    """Encode frames [N, T, 3, H, W] in [-1, 1].

    The moments have shape [N, 2 C, T', h, w] for Wan, [N * T, 2 C, h, w] for SVD.
    """
    video: Any = (
        frames.transpose(1, 2) if isinstance(vae, AutoencoderKLWan) else frames.flatten(0, 1)
    )
    return vae.encode(video, return_dict=False)[0]


def decode(vae: VideoAutoencoder, latents: torch.Tensor, frames: int) -> torch.Tensor:
    """Decode latents, as `posterior` gives them, to frames [N, T, 3, H, W], not clamped."""
    if isinstance(vae, AutoencoderKLWan):
        return _decode_wan(vae, latents)
    z: Any = latents
    return vae.decode(z, num_frames=frames, return_dict=False)[0].unflatten(0, (-1, frames))


def _decode_wan(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Decode without the final clamp, which has no gradient where a pixel is too bright."""
    vae.clear_cache()
    decoded: list[torch.Tensor] = []
    for i, latent in enumerate(vae.post_quant_conv(latents).split(1, dim=2)):
        vae._conv_idx = [0]
        part = vae.decoder(
            latent, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=i == 0
        )
        decoded.append(part)
    vae.clear_cache()
    video = torch.cat(decoded, dim=2)
    return unpatchify(video, patch_size=vae.config["patch_size"]).transpose(1, 2)


def loss_terms(vae: VideoAutoencoder, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (reconstruction loss of pictures and their changes, KL per latent number)."""
    with torch.autocast("cpu", torch.bfloat16):
        code = posterior(vae, frames)
        latents = code.sample()
        output = decode(vae, latents, frames.shape[1]).float()
    rebuilt = reconstruction_loss(output.flatten(0, 1), frames.flatten(0, 1))
    changes = F.l1_loss(output.diff(dim=1), frames.diff(dim=1))
    mean, logvar = code.mean.float(), code.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return rebuilt + changes, kl


@torch.no_grad()
def encode_clips(vae: VideoAutoencoder, clips: torch.Tensor) -> torch.Tensor:
    """Posterior means of uint8 clips [N, T, 3, H, W]: [N, C, T', h, w] (Wan), [N, T, C, h, w]."""
    parts: list[torch.Tensor] = []
    for part in clips.split(8):
        mode = posterior(vae, part / 127.5 - 1).mode()
        parts.append(mode if mode.ndim == 5 else mode.unflatten(0, (len(part), -1)))
    return torch.cat(parts)


@torch.no_grad()
def psnr(vae: VideoAutoencoder, clips: torch.Tensor) -> float:
    """Mean over frames of the PSNR in dB of encode-decode, peak 255."""
    values: list[torch.Tensor] = []
    for part in clips.split(8):
        target = part / 127.5 - 1
        output = decode(vae, posterior(vae, target).mode(), part.shape[1]).clamp(-1, 1)
        values.append(picture_psnr(output, target))
    return float(torch.cat(values).mean())


def draw(phases: torch.Tensor, clips: int, frames: int) -> torch.Tensor:
    """Draw frames [clips, frames, 3, H, W] in [-1, 1], neighbouring ones two phases apart."""
    clip = torch.randint(len(phases), (clips, 1))
    start = torch.randint(PHASES - 2 * frames + 2, (clips, 1))
    return phases[clip, start + 2 * torch.arange(frames)] / 127.5 - 1


def train(args: argparse.Namespace) -> None:
    """Run or resume the training; the averaged weights are written every few minutes."""
    begin(args)
    phases = animated_emoji(args.cache, size=SIZE).phases
    # Those that the diffusion model will be trained on.
    clips = phases[: args.count, ::2]
    out: Path = args.out or TINY / f"{args.kind}-emoji" / "vae"
    vae = read(args.kind, out) if args.refine else new(args.kind)
    planar_temporal_convolutions(vae)

    def loss_of(_step: int) -> Loss:
        rebuilt, kl = loss_terms(vae, draw(phases, args.batch, args.frames))
        # (Of a frozen encoder the KL is a constant.)
        return rebuilt + args.kl_weight * kl, {"rebuilt": rebuilt, "kl": kl}

    def write(averaged: VideoAutoencoder) -> None:
        if not args.refine:
            scale_latents(averaged, clips[::4])
        write_half(averaged, out)

    fit(
        vae,
        loss_of,
        args,
        name=f"{args.kind}_decoder" if args.refine else f"{args.kind}_vae",
        write=write,
        log_to=out.parent / ("decoder_log.json" if args.refine else "autoencoder_log.json"),
        judge=lambda averaged: {"psnr": psnr(averaged, clips[::4])},
    )


def new(kind: str) -> VideoAutoencoder:
    """Build an untrained autoencoder."""
    return build_wan() if kind == "wan" else build_svd()


def read(kind: str, folder: Path) -> VideoAutoencoder:
    """Read a trained autoencoder and freeze its encoder."""
    cls = AutoencoderKLWan if kind == "wan" else AutoencoderKLTemporalDecoder
    vae = cls.from_pretrained(str(folder), dtype=torch.float32)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return vae.train()


def scale_latents(vae: VideoAutoencoder, clips: torch.Tensor) -> None:
    """Put the scale of the latents of uint8 clips [N, 9, 3, H, W] into the config."""
    latents = encode_clips(vae, clips)
    if isinstance(vae, AutoencoderKLWan):
        vae.register_to_config(
            latents_mean=latents.mean(dim=(0, 2, 3, 4)).tolist(),
            latents_std=latents.std(dim=(0, 2, 3, 4)).tolist(),
        )
    else:
        vae.register_to_config(scaling_factor=float(1 / latents.square().mean().sqrt()))


def main() -> None:
    """Parse options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["wan", "svd"])
    add_options(parser, minutes=12, batch=12, lr=2e-3, ema=0.998, log_every=100, save_minutes=2)
    parser.add_argument("--frames", type=int, help="default: 3 for svd, 5 for wan (4 n + 1)")
    parser.add_argument("--count", type=int, default=256, help="clips that set the latents' scale")
    parser.add_argument("--kl-weight", type=float, default=5e-4, help="per latent number")
    parser.add_argument("--refine", action="store_true", help="train on, the decoder alone")
    parser.add_argument("--cache", type=Path, help="where the clips are, or are fetched to")
    parser.add_argument("--out", type=Path, help="default: models/tiny/KIND-emoji/vae")
    args = parser.parse_args()
    args.frames = args.frames or (5 if args.kind == "wan" else 3)
    # After the first frame diffusers' encoder takes four at a time, and drops what is left over.
    if args.kind == "wan" and args.frames % 4 != 1:
        parser.error(f"Wan takes clips of 4 n + 1 frames (5, 9, ...), not {args.frames}")
    train(args)


if __name__ == "__main__":
    main()
