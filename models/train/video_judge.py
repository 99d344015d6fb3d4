"""Say in numbers what the video models' samples show; the cards quote it.

`python -m ditcache.models.train.video_judge wan` and `… svd` sample every evaluation input once.
Distances are of 16x16 pixels (2x2 averages), over all nine frames.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data_video import VideoSet, animated_emoji
from .video_grid import HELD_OUT_PHASE, svd_clips, wan_clips

EVALUATION = 96


def coarse(clips: Tensor) -> Tensor:
    """Clips [N, T, 3, H, W] -> vectors [N, T * 3 * H / 2 * W / 2]."""
    return F.avg_pool2d(clips.flatten(0, 1), 2).reshape(len(clips), -1)


def motion(clips: Tensor) -> float:
    """Mean absolute difference of neighbouring frames."""
    return float(clips.diff(dim=1).abs().mean())


def originals(data: VideoSet, captions: list[str], phase: int) -> Tensor:
    """Real clips [N, 9, 3, 32, 32] in [0, 1] that begin at `phase`."""
    rows = [data.captions.index(caption) for caption in captions]
    return data.phases[rows].roll(-phase, dims=1)[:, ::2] / 255


def judge(kind: str, data: VideoSet, *, steps: int, seed: int) -> dict[str, float]:
    """Share of samples nearest to their own clip of all, and nearer to it than if it stood still.

    `still` compares with the clip's first frame, repeated; `reversed` with the clip played
    backwards (from the same first frame).
    """
    if kind == "wan":
        made, captions = wan_clips(count=EVALUATION, steps=steps, guidance=3.0, seed=seed)
        phase = 0
    else:
        made, captions = svd_clips(count=EVALUATION, steps=steps, guidance=2.0, seed=seed)
        phase = HELD_OUT_PHASE
    real = originals(data, captions, phase)
    every = originals(data, list(data.captions), phase)
    wanted = torch.tensor([data.captions.index(caption) for caption in captions])
    nearest = torch.cdist(coarse(made), coarse(every)).argmin(dim=1)
    own = (coarse(made) - coarse(real)).square().mean(dim=1)
    frozen = (coarse(made) - coarse(real[:, :1].expand_as(real))).square().mean(dim=1)
    backwards = torch.cat([real[:, :1], real[:, 1:].flip(1)], dim=1)
    turned = (coarse(made) - coarse(backwards)).square().mean(dim=1)
    return {
        "samples": len(made),
        "nearest_is_own": float((nearest == wanted).float().mean()),
        "nearer_than_still": float((own < frozen).float().mean()),
        "nearer_than_reversed": float((own < turned).float().mean()),
        "motion": motion(made),
        "real_motion": motion(real),
    }


def main() -> None:
    """Parse options and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["wan", "svd"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="where the animated emoji are")
    args = parser.parse_args()
    data = animated_emoji(args.cache, count=256, size=32)
    for name, value in judge(args.what, data, steps=args.steps, seed=args.seed).items():
        print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    main()
