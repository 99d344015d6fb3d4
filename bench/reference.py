"""The real pictures' features, kept with the repository: metrics need no font and no data set.

`python -m bench.reference` makes the file again from the emoji font.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from ditcache.models.data import digits, emoji
from torch import Tensor

from .features import SPACE, features

EMOJI = Path(__file__).parent / "reference" / "noto-emoji.efflite0.safetensors"


@dataclass(frozen=True)
class RealSet:
    """Features [M, D] of a real data set; `index` finds a caption's row (emoji only)."""

    name: str
    features: Tensor
    index: dict[str, int]

    @property
    def centre(self) -> Tensor:
        """The mean feature."""
        return self.features.mean(0)

    def rows(self, captions: list[str]) -> Tensor:
        """Positions of these captions; KeyError if one has no real picture."""
        return torch.tensor([self.index[caption] for caption in captions])


def real_emoji() -> RealSet:
    """Noto Color Emoji, as committed (fp16 on disk)."""
    with safetensors.safe_open(EMOJI, "pt") as file:
        captions = json.loads(file.metadata()["captions"])
        stored = file.get_tensor("features").double()
    return RealSet("Noto Color Emoji", stored, {caption: i for i, caption in enumerate(captions)})


def real_digits() -> RealSet:
    """scikit-learn's digits, as pixels in [0, 1]."""
    pixels, _ = digits()
    return RealSet("scikit-learn digits", ((pixels + 1) / 2).flatten(1).double(), {})


def write_emoji() -> None:
    """Compute and store the emoji features; needs the font."""
    data = emoji()
    found = features(data.images / 255)
    EMOJI.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(
        {"features": found.half().contiguous()},
        EMOJI,
        {
            "captions": json.dumps(data.captions),
            "space": SPACE,
            "source": "Noto Color Emoji (OFL-1.1), 64x64 on white",
        },
    )
    print(f"{len(found)} pictures -> {EMOJI.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    write_emoji()
