"""Train the small class-conditional model: diffusers' own DiT, on 8x8 digits, by rectified flow.

Run as `python -m ditcache.models.train.dit --minutes 12`.

Every pixel is a token (64 of them). `timestep` is sigma * 1000; class 10 stands for "no class".
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel

from ..data import digits
from .common import (
    TINY,
    Ema,
    Log,
    parameters_in_millions,
    plain_attention,
    resume,
    save_state,
    training_state,
    warmup_cosine,
    write_averaged,
    zero_modulation,
)

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
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    plain_attention()
    images, labels = digits()
    model = build(args.width, args.layers)
    # diffusers would drop classes by itself in training mode, but in each block independently
    # (every block embeds the class on its own): we drop them for all blocks at once, below.
    model.eval()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    ema = Ema(model, args.ema)
    log = Log(args.work / "dit.json", vars(args) | {"images": len(images)})
    state_path = args.work / "dit.state"
    step = resume(state_path, model, optimizer, ema, log)
    torch.manual_seed(args.seed + step)
    print(f"{parameters_in_millions(model):.2f}M parameters, {len(images)} images", flush=True)

    def loss_of(
        data: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        mixed = data + sigma[:, None, None, None] * (noise - data)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = model(mixed, sigma * 1000, classes, return_dict=False)[0]
        return F.mse_loss(velocity.float(), noise - data)

    compiled = torch.compile(loss_of) if args.compile else loss_of
    saved, since, running = log.seconds, step, torch.zeros(())
    while (progress := log.seconds / (60 * args.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warmup_cosine(progress)
        chosen = torch.randint(len(images), (args.batch,))
        dropped = torch.rand(args.batch) < args.dropout
        classes = torch.where(dropped, NULL_CLASS, labels[chosen])
        sigma = torch.randn(args.batch).sigmoid()
        data = images[chosen]
        loss = compiled(data, torch.randn_like(data), sigma, classes)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        ema.update(model, step)
        running += loss.detach()
        if step % args.log_every == 0:
            log.add(step, loss=float(running) / (step - since))
            since = step
            running.zero_()
        if log.seconds - saved > 60 * args.save_minutes:
            saved = log.seconds
            save_state(state_path, training_state(model, optimizer, ema, step, saved))
            write_averaged(model, ema, args.out)
            log.write(args.out / "dit_log.json")
    save_state(state_path, training_state(model, optimizer, ema, step, log.seconds))
    write_averaged(model, ema, args.out)
    log.write(args.out / "dit_log.json")


def main() -> None:
    """Parse options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12, help="wall time of training")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--dropout", type=float, default=0.1, help="share without a class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--save-minutes", type=float, default=2)
    parser.add_argument("--out", type=Path, default=TINY / "dit-digits")
    parser.add_argument("--work", type=Path, default=Path("out/train"), help="resumable state, log")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
