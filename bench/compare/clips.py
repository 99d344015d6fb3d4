"""Short clips for a page: all frames of one sample in one lossy WebP strip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from .figure import as_image
from .frames import slug

LARGEST_SIDE, MOST_FRAMES, QUALITY = 192, 16, 80


def save_clip(folder: Path, method: str, index: int, frames: Tensor) -> dict[str, Any]:
    """Write frames side by side; gives the file's name, number of frames, width and height."""
    chosen = frames
    if len(frames) > MOST_FRAMES:
        places = [round(i * (len(frames) - 1) / (MOST_FRAMES - 1)) for i in range(MOST_FRAMES)]
        chosen = frames[places]
    pictures = [as_image(frame) for frame in chosen]
    for picture in pictures:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    width, height = pictures[0].size
    strip = Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (i * width, 0))
    name = f"{index}-{slug(method)}.webp"
    folder.mkdir(parents=True, exist_ok=True)
    strip.save(folder / name, quality=QUALITY, method=6)
    return {"file": name, "frames": len(pictures), "width": width, "height": height}
