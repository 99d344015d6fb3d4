"""What sections share: the frame viewer, pictures as text, where a document was made."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

from .sources import Source


def viewer(source: Source, clips: list[dict[str, Any]]) -> str:
    """Samples to flip through, and methods side by side, frames running together."""
    if not clips:
        return "<p>No clips were kept.</p>"
    packed: list[dict[str, Any]] = []
    for entry in clips:
        methods = {
            name: clip | {"src": data_uri(source.clips / clip["file"])}
            for name, clip in entry["methods"].items()
            if (source.clips / clip["file"]).exists()
        }
        one: dict[str, Any] = {"sample": f"{entry['sample']}, seed {entry['seed']}", "m": methods}
        given = entry.get("input")
        if given and (source.clips / given["file"]).exists():
            one["input"] = given | {"src": data_uri(source.clips / given["file"])}
        packed.append(one)
    text = json.dumps(packed).replace("</", "<\\/")
    return f'<div class="viewer"><script type="application/json">{text}</script></div>'


def figure(source: Source, name: str) -> str:
    """First, middle and last frames of every method, if their picture lies beside the document."""
    path = source.path.parent / name
    if not path.exists():
        return ""
    picture = f'<img alt="first, middle and last frames" src="{data_uri(path)}">'
    return details("First, middle and last frames of every method", picture)


def data_uri(path: Path) -> str:
    """A picture's file as text."""
    kind = path.suffix.removeprefix(".")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def where(document: dict[str, Any]) -> str:
    made = document.get("environment", {})
    hardware, versions = made.get("hardware", {}), made.get("versions", {})
    what = hardware.get("gpu") or hardware.get("processor") or "unknown hardware"
    return (
        f'<p class="where">{escape(str(what))}, {hardware.get("threads", "?")} threads, '
        f"torch {escape(str(versions.get('torch', '?')))}, "
        f"diffusers {escape(str(versions.get('diffusers', '?')))}, "
        f"commit {escape(str(made.get('commit', '?'))[:12])}, "
        f"load {hardware.get('load_average', '?')}</p>"
    )


def details(title: str, inner: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inner}</details>"
