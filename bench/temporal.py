"""How a clip behaves in time: how alike neighbouring frames are, and how much moves."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .features import SPACE, features
from .metrics import Array, ssim

DISTANCE = f"{SPACE}-temporal-distance"


@dataclass(frozen=True)
class Temporal:
    """One number a clip: means over its pairs of neighbouring frames.

    Attributes:
        ssim: structural similarity of neighbours; 1 means that nothing changes.
        distance: 1 - cosine of neighbours' EfficientNet-Lite0 features ("EffLite0-temporal-
            distance"; not LPIPS); 0 means that nothing changes.
        motion: mean absolute difference of neighbours' pixels; smooth can mean frozen.

    """

    ssim: Array
    distance: Array
    motion: Array


def temporal(clips: Tensor) -> Temporal:
    """Measure clips [N, T, 3, H, W] in [0, 1]; T is at least two."""
    count, frames = clips.shape[:2]
    if frames < 2:
        raise ValueError(f"temporal metrics need at least two frames a clip, got {frames}")
    before, after = clips[:, :-1].flatten(0, 1), clips[:, 1:].flatten(0, 1)
    embedded = features(clips.flatten(0, 1)).unflatten(0, (count, frames))
    apart = 1 - F.cosine_similarity(embedded[:, :-1], embedded[:, 1:], dim=2)
    moved = (after - before).abs().mean(dim=(1, 2, 3)).double()
    return Temporal(
        ssim=ssim(after, before).reshape(count, -1).mean(axis=1),
        distance=apart.mean(dim=1).numpy(),
        motion=moved.reshape(count, -1).mean(dim=1).numpy(),
    )
