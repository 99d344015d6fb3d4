"""Train the small image-to-video model: diffusers' own spatio-temporal UNet, on animated emoji.

Run as `python -m ditcache.models.train.svd --minutes 50`.

Needs its autoencoder (`ditcache.models.train.video_autoencoder svd`) and its image encoder
(`ditcache.models.train.image_encoder`) first. Latents and embeddings are computed once.

The parametrisation is EDM's with a velocity output, as diffusers' EulerDiscreteScheduler has it
for Stable Video Diffusion: at noise level sigma the model sees x / sqrt(sigma^2 + 1) for
x = data + sigma * noise, with `timestep` = log(sigma) / 4, and predicts
(x / sqrt(sigma^2 + 1) - data * sqrt(sigma^2 + 1)) / sigma. The first frame's latents, unscaled,
are concatenated to every frame; its image embedding is attended to; both are zero in a tenth of
the samples. One batch in six is of keyframes: five frames at half the rate.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from ..data_video import FRAMES, PHASES, animated_emoji
from ..text import TEXT_WIDTH
from .common import TINY, planar_temporal_convolutions, write_half
from .fitting import add_options, begin, fit
from .image_encoder import embed_frames
from .video_autoencoder import SIZE, SVD_CHANNELS, encode_clips

HEAD = 32
TIME_WIDTH = 32
FPS, KEYFRAME_FPS = 7, 4
MOTION_BUCKET = 127
NOISE_AUGMENTATION = 0.02
KEYFRAMES = (FRAMES + 1) // 2
SIGMA_LOG_MEAN, SIGMA_LOG_STD = 0.7, 1.6


def build(widths: tuple[int, ...]) -> UNetSpatioTemporalConditionModel:
    """Build the untrained UNet: attention on all levels but the deepest, as in the original."""
    shallow = len(widths) - 1
    return UNetSpatioTemporalConditionModel(
        sample_size=8,
        in_channels=2 * SVD_CHANNELS,
        out_channels=SVD_CHANNELS,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * shallow
        + ("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * shallow,
        block_out_channels=widths,
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=3 * TIME_WIDTH,
        layers_per_block=1,  # pyright: ignore[reportArgumentType] - an int is what it documents
        cross_attention_dim=TEXT_WIDTH,
        num_attention_heads=tuple(width // HEAD for width in widths),
        num_frames=FRAMES,
    )


@dataclass(frozen=True)
class Batch:
    """Clips to learn from, and what the UNet is told about them.

    Attributes:
        latents: [B, T, C, h, w], of unit variance.
        first: [B, C, h, w], unscaled latents of the first frame; zero where there is no image.
        embedded: [B, 1, 384], its image embedding; likewise.
        time_ids: [B, 3], frame rate - 1, motion bucket and noise augmentation.

    """

    latents: Tensor
    first: Tensor
    embedded: Tensor
    time_ids: Tensor


@dataclass(frozen=True)
class Clips:
    """What the model learns from; a clip may begin at any phase of its loop.

    Attributes:
        latents: [N, 18, C, h, w] of each phase, scaled to unit variance.
        first: [N, 18, C, h, w], unscaled, of each phase with a little noise: the condition.
        embedded: [N, 18, 384], image embeddings.

    """

    latents: Tensor
    first: Tensor
    embedded: Tensor

    def batch(self, size: int, *, keyframes: bool, dropout: float) -> Batch:
        """Draw clips of nine frames, or of five keyframes; a share goes without its image.

        Clips begin at even phases only, half of them at the first or second of those: odd phases
        stay unseen as first frames.
        """
        clip = torch.randint(len(self.latents), (size,))
        early = torch.rand(size) < 0.5
        start = 2 * torch.where(early, torch.randint(2, (size,)), torch.randint(9, (size,)))
        frames, stride, fps = (KEYFRAMES, 4, KEYFRAME_FPS) if keyframes else (FRAMES, 2, FPS)
        phase = (start[:, None] + stride * torch.arange(frames)) % PHASES
        kept = (torch.rand(size) >= dropout).float()
        return Batch(
            latents=self.latents[clip[:, None], phase],
            first=self.first[clip, start] * kept.view(-1, 1, 1, 1),
            embedded=self.embedded[clip, start][:, None] * kept.view(-1, 1, 1),
            time_ids=time_ids(size, fps),
        )


def prepare(folder: Path, cache: Path | None, count: int, seed: int) -> Clips:
    """Encode all phases of all clips with the autoencoder and the image encoder in `folder`."""
    vae = AutoencoderKLTemporalDecoder.from_pretrained(str(folder / "vae"), dtype=torch.float32)
    encoder = CLIPVisionModelWithProjection.from_pretrained(
        str(folder / "image_encoder"), dtype=torch.float32
    )
    phases = animated_emoji(cache, count=count, size=SIZE).phases
    latents = encode_clips(vae.eval(), phases) * vae.config["scaling_factor"]
    noise = torch.randn(phases.shape, generator=torch.Generator().manual_seed(seed))
    # The encoder takes pixels of -1 to 1 in steps of 1 / 127.5.
    first = encode_clips(vae, phases + 127.5 * NOISE_AUGMENTATION * noise)
    embedded = embed_frames(encoder.eval(), phases.flatten(0, 1)).unflatten(0, (-1, PHASES))
    return Clips(latents, first, embedded)


def velocity_of(
    model: UNetSpatioTemporalConditionModel,
    x: Tensor,
    sigma: Tensor,
    batch: Batch,
    *,
    time_scale: float = 1.0,
) -> Tensor:
    """Run the UNet at x = data + sigma * noise [B, T, C, h, w]; gives its fp32 output."""
    level = sigma.view(-1, 1, 1, 1, 1)
    repeated = batch.first[:, None].expand(-1, x.shape[1], -1, -1, -1)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(
            sample=torch.cat([x / (level.square() + 1).sqrt(), repeated], dim=2),
            timestep=time_scale * sigma.log() / 4,
            encoder_hidden_states=batch.embedded,
            added_time_ids=batch.time_ids,
            return_dict=False,
        )[0]
    return velocity.float()


def velocity_loss(model: UNetSpatioTemporalConditionModel, batch: Batch) -> Tensor:
    """Mean squared error of velocities at random noise levels."""
    sigma = (SIGMA_LOG_MEAN + SIGMA_LOG_STD * torch.randn(len(batch.latents))).exp()
    level = sigma.view(-1, 1, 1, 1, 1)
    scale = (level.square() + 1).sqrt()
    x = batch.latents + level * torch.randn_like(batch.latents)
    target = (x / scale - batch.latents * scale) / level
    return F.mse_loss(velocity_of(model, x, sigma, batch), target)


def time_ids(count: int, fps: int) -> Tensor:
    """`added_time_ids` [count, 3] as the pipeline makes them for `fps`."""
    return torch.tensor([[fps - 1, MOTION_BUCKET, NOISE_AUGMENTATION]]).repeat(count, 1)


def train(args: argparse.Namespace) -> None:
    """Run or resume the training; the averaged weights are written every few minutes."""
    begin(args)
    clips = prepare(args.folder, args.cache, args.count, args.seed)
    model = build(tuple(args.widths))
    planar_temporal_convolutions(model)
    out: Path = args.out or args.folder / "unet"

    def loss_of(step: int) -> Tensor:
        batch = clips.batch(args.batch, keyframes=step % 6 == 5, dropout=args.dropout)
        return velocity_loss(model, batch)

    fit(
        model,
        loss_of,
        args,
        name="svd",
        write=partial(write_half, out=out),
        log_to=out.parent / "svd_log.json",
    )


def main() -> None:
    """Parse options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, minutes=50, batch=12, lr=1e-3, ema=0.998)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 96, 96])
    parser.add_argument("--count", type=int, default=256, help="the most animated clips")
    parser.add_argument("--dropout", type=float, default=0.1, help="share without an image")
    parser.add_argument("--cache", type=Path, help="where the clips are, or are fetched to")
    parser.add_argument("--folder", type=Path, default=TINY / "svd-emoji", help="its other parts")
    parser.add_argument("--out", type=Path, help="default: the folder's unet")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
