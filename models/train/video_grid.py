"""Write the video models' demo inputs and schedulers, and sheets of their samples.

`python -m ditcache.models.train.video_grid inputs`, then `… wan --steps 50` and `… svd --steps 25`.
A sheet has one clip a row, its nine frames from left to right, two clips side by side.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, UniPCMultistepScheduler
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file

from ..data_video import animated_emoji
from ..text import embed_captions
from ..tiny import (
    SVD_EMOJI,
    WAN_EMOJI,
    FirstFrames,
    VideoPrompts,
    load_svd_emoji,
    load_wan_emoji,
    svd_emoji_frames,
    wan_emoji_prompts,
)

CALIBRATION, EVALUATION = 32, 96
# Phase 1 lies between the phases 0 and 2 that training clips begin with: near, but not seen.
HELD_OUT_PHASE = 1


def write_inputs(cache: Path | None, count: int, seed: int) -> None:
    """Draw clips at random, split them, and write captions, embeddings and first frames."""
    data = animated_emoji(cache, count=count, size=32)
    captions = data.captions
    drawn = random.Random(seed).sample(captions, CALIBRATION + EVALUATION)
    tokens, _ = embed_captions([*drawn, ""])
    split = {"calibration": drawn[:CALIBRATION], "evaluation": drawn[CALIBRATION:], "seed": seed}
    for folder, name in ((WAN_EMOJI, "prompts"), (SVD_EMOJI, "frames")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(split, indent=1) + "\n")
    text = {"tokens": tokens[:-1].half(), "empty_tokens": tokens[-1:].half()}
    save_file({n: t.contiguous() for n, t in text.items()}, WAN_EMOJI / "prompts.safetensors")
    rows = [captions.index(caption) for caption in drawn]
    frames = data.phases[rows, HELD_OUT_PHASE].contiguous()
    save_file({"frames": frames}, SVD_EMOJI / "frames.safetensors")


def write_schedulers() -> None:
    """Write the schedulers' settings: those of Wan 2.1 and of Stable Video Diffusion."""
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
    ).save_pretrained(str(WAN_EMOJI / "scheduler"))
    EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=100.0,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
    ).save_pretrained(str(SVD_EMOJI / "scheduler"))


def wan_clips(*, count: int, steps: int, guidance: float, seed: int) -> tuple[Any, list[str]]:
    """Sample held-out prompts: float [N, 9, 3, 32, 32] in [0, 1], and their captions."""
    prompts = wan_emoji_prompts().evaluation[:count]
    return _sampled(load_wan_emoji(), prompts, steps, seed, guidance_scale=guidance, num_frames=9)


def svd_clips(*, count: int, steps: int, guidance: float, seed: int) -> tuple[Any, list[str]]:
    """Animate held-out first frames: float [N, 9, 3, 32, 32] in [0, 1], and their captions."""
    first = svd_emoji_frames().evaluation[:count]
    return _sampled(load_svd_emoji(), first, steps, seed, max_guidance_scale=guidance)


def _sampled(
    pipeline: Any, inputs: VideoPrompts | FirstFrames, steps: int, seed: int, **settings: float
) -> tuple[Any, list[str]]:
    frames = pipeline(
        **inputs.kwargs(),
        height=32,
        width=32,
        num_inference_steps=steps,
        output_type="pt",
        generator=torch.Generator().manual_seed(seed),
        **settings,
    ).frames
    return frames, list(inputs.captions)


def film_strips(clips: torch.Tensor, captions: list[str], *, columns: int = 2) -> Image.Image:
    """Lay out clips [N, T, 3, H, W] in [0, 1] as rows of frames, each under its caption."""
    count, frames, _, height, width = clips.shape
    scale = max(64 // height, 1)
    strip, row = frames * width * scale + 8, height * scale + 14
    font = ImageFont.load_default(10)
    sheet = Image.new("RGB", (columns * strip, -(-count // columns) * row), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        x, y = i % columns * strip, i // columns * row
        draw.text((x + 2, y), caption, "black", font)
        pixels = (clip.clamp(0, 1) * 255).round().byte().permute(2, 0, 3, 1)
        picture = Image.fromarray(pixels.flatten(1, 2).cpu().numpy())
        larger = picture.resize(
            (picture.width * scale, picture.height * scale), Image.Resampling.BOX
        )
        sheet.paste(larger, (x, y + 13))
    return sheet


def main() -> None:
    """Parse options and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["inputs", "wan", "svd"])
    parser.add_argument("--count", type=int, default=24, help="clips on the sheet")
    parser.add_argument("--clips", type=int, default=128, help="draw from so many of the clips")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--cfg", type=float, help="guidance; 3 for wan, 2 for svd's last frame")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="where the animated emoji are")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    guidance = args.cfg or {"wan": 3.0, "svd": 2.0}.get(args.what, 1.0)
    options: dict[str, Any] = {"count": args.count, "guidance": guidance, "seed": args.seed}
    if args.what == "inputs":
        write_inputs(args.cache, args.clips, args.seed)
        write_schedulers()
    elif args.what == "wan":
        strips = film_strips(*wan_clips(steps=args.steps or 50, **options))
        strips.save(args.out or WAN_EMOJI / "samples.png", optimize=True)
    else:
        strips = film_strips(*svd_clips(steps=args.steps or 25, **options))
        strips.save(args.out or SVD_EMOJI / "samples.png", optimize=True)


if __name__ == "__main__":
    main()
