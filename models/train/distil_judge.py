"""How near the distilled video models come to what they were distilled from; the cards quote it.

`python -m ditcache.models.train.distil_judge wan` and `… svd` sample evaluation inputs with a seed
of their own through the full model with guidance, and from the same noise through each variant.
`wan` also takes captions of other emoji, which neither the full model nor a variant has seen.
PSNR is of whole clips, mean over clips; motion the mean absolute difference of neighbouring frames.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..tiny import (
    VideoPrompts,
    flux_emoji_prompts,
    load_svd_emoji,
    load_wan_emoji,
    svd_emoji_frames,
    wan_emoji_prompts,
)
from .video_judge import motion

SEED = 5_000_000


@dataclass(frozen=True)
class Way:
    """One way to sample: a variant, and arguments of the call."""

    name: str
    variant: Any
    arguments: dict[str, float]
    seed: int = SEED


def wan_ways(steps: int) -> list[Way]:
    """The full model first; then the variants, and what they are to be held against."""
    guided = {"guidance_scale": 3.0, "num_inference_steps": steps}
    return [
        Way("full", "full", guided),
        Way("guided", "guided", {"guidance_scale": 1.0, "num_inference_steps": steps}),
        Way("four-step", "four-step", {"guidance_scale": 1.0, "num_inference_steps": 4}),
        Way("full, no guidance", "full", guided | {"guidance_scale": 1.0}),
        Way("full, 4 steps", "full", guided | {"num_inference_steps": 4}),
        Way("full, other noise", "full", guided, seed=SEED + 1),
    ]


def svd_ways(steps: int) -> list[Way]:
    """The same for the image-to-video model."""
    guided = {"max_guidance_scale": 2.0, "num_inference_steps": steps}
    return [
        Way("full", "full", guided),
        Way("guided", "guided", {"max_guidance_scale": 1.0, "num_inference_steps": steps}),
        Way("four-step", "four-step", {"max_guidance_scale": 1.0, "num_inference_steps": 4}),
        Way("full, no guidance", "full", guided | {"max_guidance_scale": 1.0}),
        Way("full, 4 steps", "full", guided | {"num_inference_steps": 4}),
        Way("full, other noise", "full", guided, seed=SEED + 1),
    ]


def unseen_captions(count: int) -> VideoPrompts:
    """Captions of still emoji that no animated clip of the training set bears."""
    known = wan_emoji_prompts()
    others = flux_emoji_prompts()
    rows = [i for i, caption in enumerate(others.captions) if caption not in known.captions]
    chosen = others[rows[:count]]
    empty = known.negative_prompt_embeds[:1].expand(len(chosen), -1, -1)
    return VideoPrompts(chosen.captions, chosen.prompt_embeds, empty)


def sample(pipeline: Any, inputs: Any, way: Way) -> Tensor:
    """Clips [N, 9, 3, 32, 32] in [0, 1]."""
    torch.manual_seed(way.seed)  # the four-step schedulers draw from the global generator
    made = pipeline(
        **inputs.kwargs(),
        **way.arguments,
        height=32,
        width=32,
        num_frames=9,
        output_type="pt",
        generator=torch.Generator().manual_seed(way.seed),
    ).frames
    return torch.as_tensor(made).float().clamp(0, 1)


def psnr(made: Tensor, wanted: Tensor) -> Tensor:
    """PSNR [N] of clips in [0, 1], in dB."""
    return -10 * (made - wanted).square().flatten(1).mean(dim=1).log10()


def main() -> None:
    """Parse options and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["wan", "svd"])
    parser.add_argument("--count", type=int, default=32, help="clips of each set of inputs")
    parser.add_argument("--steps", type=int, help="of the full model; 50 for wan, 25 for svd")
    args = parser.parse_args()
    if args.what == "wan":
        load, ways = load_wan_emoji, wan_ways(args.steps or 50)
        sets: dict[str, Any] = {
            "evaluation prompts": wan_emoji_prompts().evaluation[: args.count],
            "captions that no model has seen": unseen_captions(args.count),
        }
    else:
        load, ways = load_svd_emoji, svd_ways(args.steps or 25)
        sets = {"evaluation pictures": svd_emoji_frames().evaluation[: args.count]}
    for name, inputs in sets.items():
        print(f"{name}, {len(inputs)} clips")
        wanted = sample(load(variant="full"), inputs, ways[0])
        print(f"  {'full':18} motion {motion(wanted):.4f}")
        for way in ways[1:]:
            made = sample(load(variant=way.variant), inputs, way)
            near = psnr(made, wanted)
            print(
                f"  {way.name:18} PSNR {near.mean():.1f} dB, lowest {near.min():.1f}, "
                f"motion {motion(made):.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
