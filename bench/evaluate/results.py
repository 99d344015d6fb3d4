"""From finished blocks to numbers. Everything is read in order of index, so that bits repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import metrics
from ..checksums import sha256
from ..compare.inputs import InputError, open_picture
from ..compare.judge import as_tensor
from .blocks import Blocks
from .checks import UnusableReference, pictures
from .moments import Moments, frechet_distance
from .scorers import Panel, distance_name
from .settings import UNCACHED, write_atomically

BATCH = 32


def results(
    blocks: Blocks, variants: list[str], panel: Panel, references: dict[str, Moments]
) -> dict[str, Any]:
    """One entry a variant: distances to the reference and to uncached, scores, paired fidelity.

    `references` maps a feature space to the reference set's statistics (empty: no reference).
    """
    moments = {
        (variant, space): Moments.of_blocks(blocks.column(f"{variant}/features:{space}"))
        for variant in variants
        for space in panel.spaces
    }
    found: dict[str, Any] = {}
    for variant in variants:
        entry: dict[str, Any] = {}
        for space in panel.spaces:
            own, name = moments[variant, space], distance_name(space)
            entry["samples"] = own.count
            if own.count < 2:
                continue
            if space in references:
                entry[f"{name}:reference"] = frechet_distance(own, references[space])
            if variant != UNCACHED:
                entry[f"{name}:{UNCACHED}"] = frechet_distance(own, moments[UNCACHED, space])
        for column in blocks.names():
            mine, _, name = column.partition("/")
            kind, _, short = name.partition(":")
            if mine == variant and kind in ("score", "pair"):
                values = torch.cat(list(blocks.column(column)))
                entry[short] = metrics.spread(values.numpy()).as_dict()
        found[variant] = entry
    return found


def seconds(blocks: Blocks, variants: list[str]) -> dict[str, float]:
    """Median seconds a sample of each variant, generation alone: not part of what repeats."""
    return {
        variant: round(float(torch.cat(list(blocks.column(f"{variant}/seconds"))).median()), 4)
        for variant in variants
    }


def work(blocks: Blocks, variant: str) -> dict[str, float]:
    """Calls of the model and those forecast, summed, and how many times fewer MACs ran."""
    rows = list(blocks.column(f"{variant}/work"))
    if not rows:
        return {}
    calls, forecast, macs, uncached = torch.stack(rows).sum(0).tolist()
    return {"calls": calls, "forecast": forecast, "macs_reduction": round(uncached / macs, 4)}


def reference_moments(
    folder: Path, panel: Panel, cache: Path, size: tuple[int, int] | None
) -> tuple[dict[str, Moments], int, list[str]]:
    """Statistics of a folder of pictures, their number, and what could not be read.

    Pictures are scaled and cropped to `size` (width, height), if given. Features are kept in
    `cache`, by the folder's file names and sizes.

    Raises:
        UnusableReference: no folder, or fewer than two readable pictures in it.

    """
    from PIL import ImageOps

    paths = pictures(folder)
    listing = "\n".join(f"{p.relative_to(folder)} {p.stat().st_size}" for p in paths)
    index = cache / "reference.txt"
    write_atomically(index, f"{size} {sorted(panel.spaces)}\n{listing}")
    kept = cache / f"reference-{sha256(index)[:16]}.safetensors"
    unreadable: list[str] = []
    if not kept.exists():
        rows: dict[str, list[Tensor]] = {space: [] for space in panel.spaces}
        for start in range(0, len(paths), BATCH):
            read: list[Tensor] = []
            for path in paths[start : start + BATCH]:
                try:
                    image = open_picture(path)
                except InputError as error:
                    unreadable.append(str(error))
                    continue
                read.append(as_tensor(ImageOps.fit(image, size) if size else image))
            for space, embed in panel.spaces.items():
                # One at a time: pictures of a folder need not have one size.
                rows[space] += [embed(picture).float() for picture in read]
        if sum(map(len, rows[next(iter(rows))])) < 2:
            raise UnusableReference(f"{folder}: fewer than two readable pictures")
        save_file({space: torch.cat(parts) for space, parts in rows.items()}, kept)
    stored = load_file(kept)
    moments = {space: Moments.of_blocks(stored[space].split(BATCH)) for space in panel.spaces}
    return moments, len(stored[next(iter(stored))]), unreadable
