"""A page on which people choose between two results without knowing which is whose."""

from __future__ import annotations

import hashlib
import json
from itertools import combinations
from typing import Any

from .page import page
from .parts import data_uri
from .sources import Source

MOST_PAIRS = 240


def pairs(source: Source) -> list[dict[str, Any]]:
    """All pairs of methods on the same sample whose results differ; ids do not name the methods."""
    found: list[dict[str, Any]] = []
    for entry in source.document["clips"]:
        clips = {
            name: data_uri(source.clips / clip["file"])
            for name, clip in entry["methods"].items()
            if (source.clips / clip["file"]).exists()
        }
        for first, second in combinations(clips, 2):
            if clips[first] == clips[second]:
                continue
            key = f"{source.path.stem}|{entry['sample']}|{first}|{second}"
            found.append(
                {
                    "id": hashlib.sha256(key.encode()).hexdigest()[:12],
                    "sample": entry["sample"],
                    "methods": [first, second],
                    "clips": [entry["methods"][first], entry["methods"][second]],
                    "source": source.document["model"],
                }
            )
    # By hash, so that a shortened list is not one of the first methods alone.
    return sorted(found, key=lambda pair: pair["id"])[:MOST_PAIRS]


def blind_page(source: Source) -> str | None:
    """The page, or None where there is nothing to choose between."""
    chosen = pairs(source)
    if not chosen:
        return None
    files = sorted({clip["file"] for pair in chosen for clip in pair["clips"]})
    # Each picture once, by number: neither a file's name nor an order gives a method away.
    order = sorted(files, key=lambda file: hashlib.sha256(file.encode()).digest())
    number = {file: i for i, file in enumerate(order)}
    packed = [
        {
            "id": pair["id"],
            "sample": pair["sample"],
            "clips": [clip | {"file": number[clip["file"]]} for clip in pair["clips"]],
        }
        for pair in chosen
    ]
    body = {
        "model": source.document["model"],
        "pictures": [data_uri(source.clips / file) for file in order],
        "pairs": packed,
    }
    text = json.dumps(body).replace("</", "<\\/")
    section = (
        "<p>Which is better? Left arrow or tap: left. Right arrow or tap: right. Space: no "
        "difference. Backspace: back. Nobody is told which method made which.</p>"
        f'<div class="blind"><script type="application/json">{text}</script></div>'
    )
    return page("Which is better?", [section], script="blind.js")
