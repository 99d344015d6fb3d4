"""Train the small text-to-image model: diffusers' own Flux, on emoji latents, by rectified flow.

Run as `python -m ditcache.models.train.flux --minutes 75`.

Needs the autoencoder first (`ditcache.models.train.autoencoder`). Latents and text embeddings are
computed once. At noise level sigma the model sees (1 - sigma) * data + sigma * noise and predicts
noise - data, with `timestep` = sigma, as diffusers' FluxPipeline passes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxTransformer2DModel

from ..data import emoji
from ..text import TEXT_LENGTH, TEXT_WIDTH, embed_captions
from .autoencoder import encode_all
from .common import TINY, write_half, zero_modulation
from .fitting import add_options, begin, fit

HEAD = 32


def build(latent_channels: int, width: int, double: int, single: int) -> FluxTransformer2DModel:
    """Build the untrained transformer; `width` must be a multiple of 32."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * latent_channels,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=HEAD,
        num_attention_heads=width // HEAD,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    zero_modulation(model)
    # Under autocast the embedder's output would be bf16, and Flux casts `timestep` to that type:
    # the model would learn a coarse grid of times and stumble over the values between.
    model.x_embedder.register_forward_hook(lambda _module, _inputs, output: output.float())
    return model


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> [N, H/2 * W/2, 4 C], in the order of diffusers' FluxPipeline."""
    n, c, h, w = latents.shape
    grid = latents.view(n, c, h // 2, 2, w // 2, 2)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)


def image_ids(side: int) -> torch.Tensor:
    """RoPE positions [side * side, 3] of a square of image tokens."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).float()


def prepare(vae_path: Path, font: Path | None) -> dict[str, torch.Tensor]:
    """Encode all pictures and captions; the empty prompt comes last."""
    vae = AutoencoderKL.from_pretrained(str(vae_path), dtype=torch.float32).eval()
    data = emoji(font)
    latents = encode_all(vae, data.images)
    latents = (latents - vae.config["shift_factor"]) * vae.config["scaling_factor"]
    tokens, pooled = embed_captions([*data.captions, ""])
    return {"latents": pack(latents), "tokens": tokens, "pooled": pooled}


def make_loss(
    model: FluxTransformer2DModel, side: int
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return loss(data, noise, sigma, tokens, pooled), a mean squared error of velocities."""
    ids, text_ids = image_ids(side), torch.zeros(TEXT_LENGTH, 3)

    def loss(
        data: torch.Tensor,
        noise: torch.Tensor,
        sigma: torch.Tensor,
        tokens: torch.Tensor,
        pooled: torch.Tensor,
    ) -> torch.Tensor:
        mixed = data + sigma[:, None, None] * (noise - data)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = model(
                hidden_states=mixed,
                encoder_hidden_states=tokens,
                pooled_projections=pooled,
                timestep=sigma,
                img_ids=ids,
                txt_ids=text_ids,
                return_dict=False,
            )[0]
        return F.mse_loss(velocity.float(), noise - data)

    return loss


def train(args: argparse.Namespace) -> None:
    """Run or resume the training; the averaged weights are written every few minutes."""
    begin(args)
    data = prepare(args.vae, args.font)
    count, area, channels = data["latents"].shape
    model = build(channels // 4, args.width, args.double, args.single)
    loss = make_loss(model, int(area**0.5))
    if args.compile:
        loss = torch.compile(loss)

    def loss_of(_step: int) -> torch.Tensor:
        chosen = torch.randint(count, (args.batch,))
        prompt = torch.where(torch.rand(args.batch) < args.dropout, count, chosen)
        latents = data["latents"][chosen]
        sigma = torch.randn(args.batch).sigmoid()
        tokens, pooled = data["tokens"][prompt], data["pooled"][prompt]
        return loss(latents, torch.randn_like(latents), sigma, tokens, pooled)

    fit(
        model,
        loss_of,
        args,
        name="flux",
        write=partial(write_half, out=args.out),
        log_to=args.out.parent / "flux_log.json",
        facts={"images": count},
    )


def main() -> None:
    """Parse options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, minutes=75, batch=32, lr=1e-3, ema=0.999, log_every=100)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--double", type=int, default=4, help="two-stream blocks")
    parser.add_argument("--single", type=int, default=8, help="one-stream blocks")
    parser.add_argument("--dropout", type=float, default=0.1, help="share of empty prompts")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--font", type=Path, help="NotoColorEmoji.ttf")
    parser.add_argument("--vae", type=Path, default=TINY / "flux-emoji" / "vae")
    parser.add_argument("--out", type=Path, default=TINY / "flux-emoji" / "transformer")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
