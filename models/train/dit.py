"""Train the small class-conditional model: diffusers' own DiT, on 8x8 digits, by rectified flow.

Run as `python -m ditcache.models.train.dit --minutes 12`.

Every pixel is a token (64 of them). `timestep` is sigma * 1000; class 10 stands for "no class".
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel

from ..data import digits
from .common import TINY, write_half, zero_modulation
from .fitting import add_options, begin, fit

HEAD = 32
NULL_CLASS = 10


def build(width: int = 96, layers: int = 8) -> DiTTransformer2DModel:
    """Build the untrained model; `width` must be a multiple of 32."""
    model = DiTTransformer2DModel(
        num_attention_heads=width // HEAD,
        attention_head_dim=HEAD,
        in_channels=1,
        out_channels=1,
        num_layers=layers,
        sample_size=8,
        patch_size=1,
        num_embeds_ada_norm=NULL_CLASS,
    )
    zero_modulation(model)
    return model


def train(args: argparse.Namespace) -> None:
    """Run or resume the training; the averaged weights are written every few minutes."""
    begin(args)
    images, labels = digits()
    model = build(args.width, args.layers)
    # diffusers would drop classes by itself in training mode, but in each block independently
    # (every block embeds the class on its own): we drop them for all blocks at once, below.
    model.eval()

    def loss(
        data: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        mixed = data + sigma[:, None, None, None] * (noise - data)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = model(mixed, sigma * 1000, classes, return_dict=False)[0]
        return F.mse_loss(velocity.float(), noise - data)

    compiled = torch.compile(loss) if args.compile else loss

    def loss_of(_step: int) -> torch.Tensor:
        chosen = torch.randint(len(images), (args.batch,))
        dropped = torch.rand(args.batch) < args.dropout
        classes = torch.where(dropped, NULL_CLASS, labels[chosen])
        sigma = torch.randn(args.batch).sigmoid()
        data = images[chosen]
        return compiled(data, torch.randn_like(data), sigma, classes)

    fit(
        model,
        loss_of,
        args,
        name="dit",
        write=partial(write_half, out=args.out),
        log_to=args.out / "dit_log.json",
        facts={"images": len(images)},
    )


def main() -> None:
    """Parse options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, minutes=12, batch=64, lr=1e-3, ema=0.999, log_every=100, save_minutes=2)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.1, help="share without a class")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=TINY / "dit-digits")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
