"""How a clip behaves in time: how alike neighbouring frames are, and how much moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .features import SPACE, looks
from .metrics import Array, ssim

PERCEPTUAL = f"{SPACE}-distance"
DISTANCE = f"{SPACE}-temporal-distance"


@dataclass(frozen=True)
class Temporal:
    """One number a clip: means over its pairs of neighbouring frames.

    Attributes:
        ssim: structural similarity of neighbours; 1 means that nothing changes.
        distance: EffLite0-distance of neighbours (see README.md; not LPIPS); 0 means that nothing
            changes.
        motion: mean absolute difference of neighbours' pixels; smooth can mean frozen.

    """

    ssim: Array
    distance: Array
    motion: Array


def temporal(clips: Tensor) -> Temporal:
    """Measure clips [N, T, 3, H, W] in [0, 1]; T is at least two."""
    frames = clips.shape[1]
    if frames < 2:
        raise ValueError(f"temporal metrics need at least two frames a clip, got {frames}")
    before, after = clips[:, :-1].flatten(0, 1), clips[:, 1:].flatten(0, 1)
    moved = (after - before).abs().mean(dim=(1, 2, 3)).double().numpy()
    # One clip at a time: the maps of a frame are 150,000 numbers.
    apart = [float(looks(clip)[1].diff(dim=0).square().sum(1).mean()) for clip in clips]
    return Temporal(
        ssim=ssim(after, before).reshape(-1, frames - 1).mean(axis=1),
        distance=np.asarray(apart, dtype=np.float64),
        motion=moved.reshape(-1, frames - 1).mean(axis=1),
    )


def perceptual(clips: Tensor, reference: Tensor) -> Array:
    """EffLite0-distance of each clip [N, T, 3, H, W] to its reference, the mean over frames."""
    apart = [
        float((looks(made)[1] - looks(wanted)[1]).square().sum(1).mean())
        for made, wanted in zip(clips, reference, strict=True)
    ]
    return np.asarray(apart, dtype=np.float64)
