"""Write the demo prompts' embeddings, and a captioned grid of samples of each small model.

`python -m ditcache.models.train.grid prompts`, then `… flux --steps 50 --cfg 2.5`, then `… dit`.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file

from ..data import emoji
from ..text import embed_captions
from ..tiny import (
    DIT_DIGITS,
    FLUX_EMOJI,
    flux_emoji_prompts,
    load_dit_digits,
    load_flux_emoji,
    sample_digits,
)

CALIBRATION, EVALUATION = 32, 128
# Pictures of signs: whether they match their name takes reading, not looking.
_SIGNS = ("clock face", "squared", "circled", "japanese", "negative", "input symbol")


def write_prompts(font: Path | None, seed: int, out: Path) -> None:
    """Draw captions at random, split them, and write their embeddings as fp16."""
    eligible = [c for c in emoji(font).captions if not c.startswith(_SIGNS)]
    drawn = random.Random(seed).sample(eligible, CALIBRATION + EVALUATION)
    tokens, pooled = embed_captions([*drawn, ""])
    tensors = {
        "tokens": tokens[:-1],
        "pooled": pooled[:-1],
        "empty_tokens": tokens[-1:],
        "empty_pooled": pooled[-1:],
    }
    out.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(half, out / "prompts.safetensors")
    split = {"calibration": drawn[:CALIBRATION], "evaluation": drawn[CALIBRATION:], "seed": seed}
    (out / "prompts.json").write_text(json.dumps(split, indent=1) + "\n")


def flux_grid(out: Path, *, count: int, steps: int, cfg: float, seed: int, first: int) -> None:
    """Sample held-out prompts, eight to a row, and write them with their captions."""
    prompts = flux_emoji_prompts().evaluation[first : first + count]
    pipeline: Any = load_flux_emoji()
    images = pipeline(
        **prompts.kwargs(),
        height=64,
        width=64,
        true_cfg_scale=cfg,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
    ).images
    captioned_grid(images, list(prompts.captions), cell=104, columns=8).save(out, optimize=True)


def dit_grid(out: Path, *, steps: int, cfg: float, seed: int) -> None:
    """Sample each digit eight times, one digit to a column."""
    labels = torch.arange(10).repeat(8)
    generator = torch.Generator().manual_seed(seed)
    pixels = sample_digits(load_dit_digits(), labels, steps, cfg, generator)
    scaled = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().squeeze(1)
    images = [Image.fromarray(digit.numpy()).resize((32, 32), 0) for digit in scaled]
    captions = [str(int(label)) for label in labels]
    captioned_grid(images, captions, cell=40, columns=10).save(out, optimize=True)


def captioned_grid(
    images: list[Image.Image], captions: list[str], *, cell: int, columns: int
) -> Image.Image:
    """Lay images out in cells of `cell` pixels' width, each over its caption (three lines)."""
    font = ImageFont.load_default(10)
    lines = 3 if cell > 64 else 1
    height = images[0].height + 13 * lines + 2
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = i % columns * cell, i // columns * height
        sheet.paste(image, (x + (cell - image.width) // 2, y))
        for j, line in enumerate(_wrap(caption, (cell - 4) // 6, lines)):
            draw.text((x + cell // 2, y + image.height + 13 * j), line, "black", font, "ma")
    return sheet


def _wrap(text: str, width: int, lines: int) -> list[str]:
    wrapped = [""]
    for word in text.split():
        if wrapped[-1] and len(wrapped[-1]) + len(word) + 1 > width:
            wrapped.append("")
        wrapped[-1] = f"{wrapped[-1]} {word}".strip()
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1] + "…"]
    return wrapped


def main() -> None:
    """Parse options and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["prompts", "flux", "dit"])
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--first", type=int, default=0, help="first held-out prompt")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, help="guidance; 2.5 for flux, 2 for dit by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--font", type=Path, help="NotoColorEmoji.ttf")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.what == "prompts":
        write_prompts(args.font, args.seed, args.out or FLUX_EMOJI)
    elif args.what == "flux":
        flux_grid(
            args.out or FLUX_EMOJI / "samples.png",
            count=args.count,
            steps=args.steps,
            cfg=args.cfg or 2.5,
            seed=args.seed,
            first=args.first,
        )
    else:
        out = args.out or DIT_DIGITS / "samples.png"
        dit_grid(out, steps=args.steps, cfg=args.cfg or 2.0, seed=args.seed)


if __name__ == "__main__":
    main()
