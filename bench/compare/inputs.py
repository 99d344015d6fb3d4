"""The samples that are asked for: prompts from a text file, pictures from a folder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..bad_input import BadInput

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
PROMPTS = "prompts.txt"


class InputError(BadInput):
    """The folder of inputs cannot be used at all."""


@dataclass(frozen=True)
class Skipped:
    """An input that was left out."""

    name: str
    reason: str


@dataclass
class Sample:
    """One generation: what the pipeline gets beside the common arguments, and the seed.

    `image` is the picture that a video starts from, as the pipeline gets it; `caption` what the
    prompt says. Both are for judging only.
    """

    name: str
    seed: int
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    image: Image.Image | None = None
    caption: str | None = None

    def reseeded(self, seed: int) -> Sample:
        """Give the same input with another seed."""
        return replace(self, seed=seed)

    def fit(self, width: int, height: int) -> None:
        """Scale and crop the picture to the video's size, centred."""
        if self.image is not None and self.image.size != (width, height):
            self.image = ImageOps.fit(self.image, (width, height), Image.Resampling.LANCZOS)
            self.arguments["image"] = self.image


def from_folder(
    folder: Path, kind: str, count: int, seed: int
) -> tuple[list[Sample], list[Skipped]]:
    """Read at most `count` samples; the second list says what could not be read, and why.

    Image-to-video takes every picture, in order of name; the others every line of `prompts.txt`.

    Raises:
        InputError: the folder or its prompts are not there.

    """
    if kind == "image-to-video":
        return _pictures(folder, count, seed)
    path = folder / PROMPTS if folder.is_dir() else folder
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected one prompt a line")
    prompts, skipped = read_prompts(path)
    samples = [
        Sample(f"{i:04}", seed + i, {"prompt": prompt}, caption=prompt)
        for i, prompt in enumerate(prompts[:count])
    ]
    return samples, skipped


def read_prompts(path: Path) -> tuple[list[str], list[Skipped]]:
    """One prompt a line; lines that are empty, or not UTF-8 text, are left out and said."""
    prompts: list[str] = []
    skipped: list[Skipped] = []
    for number, raw in enumerate(path.read_bytes().splitlines(), 1):
        name = f"{path.name}:{number}"
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            skipped.append(Skipped(name, f"not UTF-8 ({error.reason} at byte {error.start})"))
            continue
        if not text:
            skipped.append(Skipped(name, "empty"))
        elif any(ord(c) < 32 and c != "\t" for c in text):
            skipped.append(Skipped(name, "control characters"))
        else:
            prompts.append(text)
    return prompts, skipped


def open_picture(path: Path) -> Image.Image:
    """Open any picture as RGB, transparent parts on white.

    Raises:
        InputError: it is no picture that Pillow can read.

    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                white.alpha_composite(image)
                image = white
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
                image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{path.name}: not a readable picture ({error})") from error


def _pictures(folder: Path, count: int, seed: int) -> tuple[list[Sample], list[Skipped]]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected pictures")
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
    if not paths:
        raise InputError(f"{folder}: no pictures ({', '.join(sorted(PICTURES))})")
    for path in paths:
        if len(samples) == count:
            break
        try:
            image = open_picture(path)
        except InputError as error:
            skipped.append(Skipped(path.name, str(error)))
            continue
        if min(image.size) < 8:
            skipped.append(Skipped(path.name, f"{image.width}x{image.height} is too small"))
            continue
        samples.append(Sample(path.stem, seed + len(samples), {"image": image}, image=image))
    return samples, skipped
