"""First, middle and last frames of every method on one sample, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP, HEAD, LABEL = 6, 24, 190


def save_figure(
    path: Path,
    videos: dict[str, Tensor],
    labels: dict[str, str],
    image: Image.Image | None = None,
    *,
    cell: int = 128,
) -> None:
    """One row a method; columns are the input (if there is one), first, middle and last frame."""
    heads = ["first", "middle", "last"] if _most_frames(videos) > 1 else ["picture"]
    columns = (["input"] if image is not None else []) + heads
    sheet = Image.new(
        "RGB",
        (LABEL + len(columns) * (cell + GAP), HEAD + max(1, len(videos)) * (cell + GAP)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for i, head in enumerate(columns):
        draw.text((LABEL + i * (cell + GAP) + cell // 2, 4), head, "black", font, anchor="ma")
    for row, (name, frames) in enumerate(videos.items()):
        top = HEAD + row * (cell + GAP)
        draw.multiline_text((6, top + cell // 2 - 14), labels[name], "black", font)
        pictures = [image] if image is not None else []
        pictures += [as_image(frames[i]) for i in picked(len(frames))]
        for i, picture in enumerate(pictures):
            sheet.paste(_scaled(picture, cell), (LABEL + i * (cell + GAP), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256).save(path, optimize=True)


def picked(count: int) -> Sequence[int]:
    """Indices of the first, middle and last of `count` frames."""
    return (0,) if count == 1 else (0, count // 2, count - 1)


def as_image(frame: Tensor) -> Image.Image:
    """Float [3, H, W] in [0, 1]."""
    pixels = (frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels)


def _scaled(picture: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(picture.size)
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size, how)


def _most_frames(videos: dict[str, Tensor]) -> int:
    return max((len(v) for v in videos.values()), default=1)
