"""Train the frame interpolator on animated emoji, 32x32.

Run as `python -m ditcache.models.train.interpolation --minutes 7`.

Two phases of a loop, two or four eighteenths apart, are given, and the one in the middle is asked
for. Clips are few and the network soon knows them, so each batch is mirrored, turned, played
backwards and recoloured at random. Every sixteenth clip is held out for the log's PSNR.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..data_video import PHASES, animated_emoji
from ..interpolation import FrameInterpolator
from .autoencoder import reconstruction_loss
from .common import TINY
from .fitting import add_options, begin, fit

HELD_OUT = 16  # one clip in so many


def triples(phases: Tensor, clip: Tensor, start: Tensor, gap: Tensor) -> tuple[Tensor, ...]:
    """Frames in [0, 1] at `start`, `start + gap` and `start + 2 * gap` of each clip's loop."""
    return tuple(phases[clip, (start + i * gap) % PHASES] / 255 for i in range(3))


def varied(frames: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same motions as other pictures: frames [N, 3, H, W] mirrored, turned, recoloured."""
    together = torch.stack(frames)
    if torch.rand(()) < 0.5:
        together = together.flip(0)
    for axis in (-1, -2):
        if torch.rand(()) < 0.5:
            together = together.flip(axis)
    if torch.rand(()) < 0.5:
        together = together.transpose(-1, -2)
    return tuple(together[:, :, torch.randperm(3)])


@torch.no_grad()
def held_out_psnr(model: FrameInterpolator, phases: Tensor) -> dict[str, float]:
    """PSNR in dB of middle frames over keyframes four phases apart, and that of a plain mean."""
    clip = torch.arange(len(phases)).repeat_interleave(4)
    start = 4 * torch.arange(4).repeat(len(phases))
    before, wanted, after = triples(phases, clip, start, torch.full_like(start, 2))
    errors = [F.mse_loss(made, wanted) for made in (model(before, after), (before + after) / 2)]
    ours, mean = (float(-10 * error.log10()) for error in errors)
    return {"held_out_psnr": ours, "held_out_psnr_of_mean": mean}


def write(model: FrameInterpolator, folder: Path) -> None:
    """Write the weights as fp16 safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def train(args: argparse.Namespace) -> None:
    """Run or resume the training; the averaged weights are written every few minutes."""
    begin(args)
    phases = animated_emoji(args.cache, count=args.count, size=32).phases
    held_out = torch.arange(len(phases)) % HELD_OUT == HELD_OUT - 1
    seen = phases[~held_out]
    model = FrameInterpolator()

    def loss_of(_step: int) -> Tensor:
        clip = torch.randint(len(seen), (args.batch,))
        start = torch.randint(PHASES, (args.batch,))
        gap = torch.where(torch.rand(args.batch) < 0.75, 2, 1)
        before, wanted, after = varied(triples(seen, clip, start, gap))
        with torch.autocast("cpu", torch.bfloat16):
            made = model(before, after)
        return reconstruction_loss(made.float(), wanted)

    fit(
        model,
        loss_of,
        args,
        name="interpolation",
        write=partial(write, folder=args.out),
        log_to=args.out / "interpolation_log.json",
        betas=(0.9, 0.999),
        judge=partial(held_out_psnr, phases=phases[held_out]),
        facts={"clips": len(seen)},
    )


def main() -> None:
    """Parse options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, minutes=7, batch=32, lr=1e-3, ema=0.99, log_every=100)
    parser.add_argument("--count", type=int, default=534, help="the most animated clips")
    parser.add_argument("--cache", type=Path, help="where the clips are, or are fetched to")
    parser.add_argument("--out", type=Path, default=TINY / "interpolation-emoji")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
