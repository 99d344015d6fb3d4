"""The demo's two pictures: samples side by side, and how stable each block is at each step."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from ditcache import Profile
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL, GAP, HEAD, LABEL = 128, 6, 24, 132


def save_grid(
    path: Path, columns: dict[str, Tensor], captions: Sequence[str], rows: int | None = None
) -> None:
    """Pictures [N, 3, H, W] in [0, 1] of each column, one row a caption."""
    count = min(rows or len(captions), len(captions))
    width = LABEL + len(columns) * (CELL + GAP)
    sheet = Image.new("RGB", (width, HEAD + count * (CELL + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for column, (title, pictures) in enumerate(columns.items()):
        x = LABEL + column * (CELL + GAP)
        draw.text((x + CELL // 2, 4), title, "black", font, anchor="ma")
        for row in range(count):
            y = HEAD + row * (CELL + GAP)
            sheet.paste(_image(pictures[row]), (x, y))
    for row, caption in enumerate(captions[:count]):
        lines = textwrap.wrap(caption, 18)
        y = HEAD + row * (CELL + GAP) + CELL // 2 - 8 * len(lines)
        draw.multiline_text((6, y), "\n".join(lines), "black", font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def save_stability(path: Path, profile: Profile) -> None:
    """Heat map of each block's relative change from step to step."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import LogNorm

    names = [r.region for r in profile.regions]
    drift = np.stack([profile.drift(name) for name in names])
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.28 * len(names)), layout="constrained")
    floor = max(float(drift.min()), 1e-4)
    image = axes.imshow(
        np.maximum(drift, floor),
        aspect="auto",
        cmap="viridis",
        norm=LogNorm(floor, float(drift.max())),
        extent=(0.5, drift.shape[1] + 0.5, len(names) - 0.5, -0.5),
        interpolation="nearest",
    )
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=8)
    axes.set_xlabel("step")
    axes.set_title("Relative change of each block's output from the step before", fontsize=10)
    figure.colorbar(image, ax=axes, label="drift (log scale)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _image(picture: Tensor) -> Image.Image:
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.NEAREST)


def _short(name: str) -> str:
    return name.replace("single_transformer_blocks.", "single ").replace(
        "transformer_blocks.", "double "
    )
