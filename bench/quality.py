"""One set of pictures judged: against the uncached ones, the real ones, and its captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import metrics
from .features import SPACE
from .reference import RealSet

CAPTION = f"{SPACE}-caption-sim"


@dataclass(frozen=True)
class Pictures:
    """Pictures [N, 3, H, W] in [0, 1], their features [N, D] and, where there are, their maps.

    The squared distance of two rows of `maps` [N, M] is the perceptual distance.
    """

    images: Tensor
    features: Tensor
    maps: Tensor | None = None

    def first(self, count: int) -> Pictures:
        """The first `count` of them."""
        maps = None if self.maps is None else self.maps[:count]
        return Pictures(self.images[:count], self.features[:count], maps)


def frechet_name(space: str) -> str:
    """Name the Fréchet distance after its feature space; "FID" is Inception's alone."""
    return f"FD-{space}"


def fidelity(made: Pictures, uncached: Pictures) -> dict[str, Any]:
    """How close to the uncached pictures of the same prompts and seeds."""
    return {
        "psnr": metrics.spread(metrics.psnr(made.images, uncached.images)).as_dict(),
        "ssim": metrics.spread(metrics.ssim(made.images, uncached.images)).as_dict(),
        "bit_identical": bool(torch.equal(made.images, uncached.images)),
    }


def distribution(
    made: Pictures,
    real: RealSet,
    references: dict[str, Pictures],
    captions: list[str],
    *,
    space: str = SPACE,
) -> dict[str, Any]:
    """How good as pictures: distances to the real set and to uncached sets; likeness to captions.

    `captions` may be empty where the real set has none.
    """
    count, distance_name = len(made.features), frechet_name(space)
    found: dict[str, Any] = {
        f"{distance_name}:real": round(metrics.frechet_distance(made.features, real.features), 3),
        "samples": {"made": count, "real": len(real.features)},
    }
    for name, reference in references.items():
        distance = metrics.frechet_distance(made.features, reference.features)
        found[f"{distance_name}:{name}"] = round(distance, 3)
        found["samples"][name] = len(reference.features)
    if captions and real.index:
        wanted = real.rows(captions)
        own = real.features[wanted]
        similar = metrics.caption_similarity(made.features, own, real.centre)
        nearest = metrics.retrieval(made.features, real.features, wanted, real.centre)
        found[CAPTION] = metrics.spread(similar).as_dict()
        found[f"{CAPTION}:nearest"] = round(float(nearest.mean()), 4)
    return found
