"""The documents of a results folder, told apart by what they say they are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bad_input import BadInput

# What a document says it is, in the order of the page.
KINDS = {"ditcache compare": "compare", "ditcache evaluate": "evaluate", "ditcache bench": "bench"}


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
    order = list(KINDS.values())
    return sorted(found, key=lambda source: (order.index(source.kind), source.path))


def _kind(document: Any) -> str | None:
    what = document.get("what") if isinstance(document, dict) else None
    return KINDS.get(what) if isinstance(what, str) else None
