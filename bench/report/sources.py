"""The documents of a results folder, told apart by what they say they are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bad_input import BadInput


@dataclass(frozen=True)
class Source:
    """One document, of the kind "compare", "evaluate" or "bench", and the folder of its clips."""

    kind: str
    path: Path
    document: dict[str, Any]

    @property
    def clips(self) -> Path:
        return self.path.parent / "clips"


def find(folder: Path) -> list[Source]:
    """Documents in the folder and one level below, comparisons first.

    Raises:
        BadInput: no such folder, or nothing in it that a page can be made of.

    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; expected results of compare, evaluate or bench")
    found: list[Source] = []
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        try:
            document = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue
        kind = _kind(document)
        if kind is not None:
            found.append(Source(kind, path, document))
    if not found:
        raise BadInput(
            f"{folder}: no results in it; expected compare.json, evaluate.json or a result of bench"
        )
    order = {"compare": 0, "evaluate": 1, "bench": 2}
    return sorted(found, key=lambda source: (order[source.kind], source.path))


def _kind(document: Any) -> str | None:
    if not isinstance(document, dict):
        return None
    if document.get("what") == "ditcache compare":
        return "compare"
    if document.get("what") == "ditcache evaluate":
        return "evaluate"
    cells = document.get("cells")
    if isinstance(cells, list) and cells and all(isinstance(c, dict) for c in cells):
        return "bench" if any("psnr" in c and "macs_reduction" in c for c in cells) else None
    return None
