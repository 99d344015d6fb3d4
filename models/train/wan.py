"""Train the small text-to-video model: diffusers' own Wan, on animated emoji, by rectified flow.

Run as `python -m ditcache.models.train.wan --minutes 50`.

Needs its autoencoder first (`ditcache.models.train.video_autoencoder wan`). Latents and text
embeddings are computed once. At noise level sigma the model sees (1 - sigma) * data + sigma * noise
and predicts noise - data, with `timestep` = 1000 sigma, as diffusers' WanPipeline passes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from ..data_video import animated_emoji
from ..text import TEXT_WIDTH, embed_captions
from .common import TINY, write_half, zero_modulation
from .fitting import add_options, begin, fit
from .video_autoencoder import SIZE, encode_clips

HEAD = 32


def build(latent_channels: int, width: int, blocks: int) -> WanTransformer3DModel:
    """Build the untrained transformer; `width` must be a multiple of 32."""
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=width // HEAD,
        attention_head_dim=HEAD,
        in_channels=latent_channels,
        out_channels=latent_channels,
        text_dim=TEXT_WIDTH,
        freq_dim=128,
        ffn_dim=4 * width,
        num_layers=blocks,
        rope_max_seq_len=64,
    )
    zero_modulation(model)
    keep_residual_stream(model)
    return model


def keep_residual_stream(model: WanTransformer3DModel) -> None:
    """Under autocast, keep the residual stream and the modulation in fp32.

    Wan keeps them in the type that these two layers give, and that would be bf16.
    """
    for name in ("patch_embedding", "condition_embedder.text_embedder"):
        model.get_submodule(name).register_forward_hook(lambda _m, _inputs, output: output.float())


def prepare(vae_path: Path, cache: Path | None, count: int) -> dict[str, torch.Tensor]:
    """Encode all clips and captions; the empty prompt comes last."""
    vae = AutoencoderKLWan.from_pretrained(str(vae_path), dtype=torch.float32).eval()
    data = animated_emoji(cache, count=count, size=SIZE)
    latents = encode_clips(vae, data.clips)
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config["latents_mean"]).view(shape)
    std = torch.tensor(vae.config["latents_std"]).view(shape)
    tokens, _ = embed_captions([*data.captions, ""])
    return {"latents": (latents - mean) / std, "tokens": tokens}


def velocity_of(
    model: WanTransformer3DModel, x: torch.Tensor, sigma: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Run the model at x = (1 - sigma) * data + sigma * noise [B, C, T, h, w]; gives fp32."""
    timestep: torch.Tensor = 1000 * sigma
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(
            hidden_states=x,
            timestep=timestep,  # pyright: ignore[reportArgumentType] - any real number does
            encoder_hidden_states=tokens,
            return_dict=False,
        )[0]
    return velocity.float()


def make_loss(
    model: WanTransformer3DModel,
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return loss(data, noise, sigma, tokens), a mean squared error of velocities."""

    def loss(
        data: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        mixed = data + sigma.view(-1, 1, 1, 1, 1) * (noise - data)
        return F.mse_loss(velocity_of(model, mixed, sigma, tokens), noise - data)

    return loss


def train(args: argparse.Namespace) -> None:
    """Run or resume the training; the averaged weights are written every few minutes."""
    begin(args)
    data = prepare(args.vae, args.cache, args.count)
    model = build(data["latents"].shape[1], args.width, args.blocks)
    loss = make_loss(model)
    if args.compile:
        loss = torch.compile(loss)

    def loss_of(_step: int) -> torch.Tensor:
        chosen = torch.randint(args.count, (args.batch,))
        prompt = torch.where(torch.rand(args.batch) < args.dropout, args.count, chosen)
        latents = data["latents"][chosen]
        sigma = torch.randn(args.batch).sigmoid()
        return loss(latents, torch.randn_like(latents), sigma, data["tokens"][prompt])

    fit(
        model,
        loss_of,
        args,
        name="wan",
        write=partial(write_half, out=args.out),
        log_to=args.out.parent / "wan_log.json",
    )


def main() -> None:
    """Parse options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, minutes=50, batch=24, lr=1e-3, ema=0.998)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--count", type=int, default=128, help="the most animated clips")
    parser.add_argument("--dropout", type=float, default=0.1, help="share of empty prompts")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--cache", type=Path, help="where the clips are, or are fetched to")
    parser.add_argument("--vae", type=Path, default=TINY / "wan-emoji" / "vae")
    parser.add_argument("--out", type=Path, default=TINY / "wan-emoji" / "transformer")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
