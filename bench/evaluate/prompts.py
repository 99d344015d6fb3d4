"""Prompts from a file: one a line, a JSON list, MS-COCO's captions, or VBench's suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..bad_input import BadInput
from ..compare.inputs import Skipped, read_prompts
from .vbench_total import needed


class PromptError(BadInput):
    """The file has no usable prompt at all."""


def load_prompts(path: Path) -> tuple[list[str], list[Skipped]]:
    """Prompts in the file's order, and what was left out of it with the reason.

    MS-COCO's captions file (`captions_val2014.json`) gives one caption an image, that of the
    lowest annotation id, in order of image id: the usual 30k protocol draws from these. VBench's
    list (`VBench_full_info.json`) gives each prompt as often as VBench wants videos of it.

    Raises:
        PromptError: no such file, not JSON though named so, or nothing usable in it.

    """
    if not path.is_file():
        raise PromptError(f"{path}: no such file; expected prompts, one a line, or JSON")
    if path.suffix != ".json":
        prompts, skipped = read_prompts(path)
    else:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise PromptError(f"{path}: not JSON ({error})") from error
        prompts, skipped = _from_json(document, path)
    if not prompts:
        said = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3]) or "it is empty"
        raise PromptError(f"{path}: no usable prompt ({said})")
    return prompts, skipped


def _from_json(document: Any, path: Path) -> tuple[list[str], list[Skipped]]:
    if isinstance(document, dict) and "annotations" in document:
        return _coco(document["annotations"])
    if not isinstance(document, list):
        raise PromptError(f"{path}: expected a list of prompts or MS-COCO's annotations")
    if document and all(isinstance(e, dict) and "prompt_en" in e for e in document):
        return _vbench(document), []
    prompts: list[str] = []
    skipped: list[Skipped] = []
    for i, entry in enumerate(document):
        text = entry.get("prompt") if isinstance(entry, dict) else entry
        if isinstance(text, str) and text.strip():
            prompts.append(text.strip())
        else:
            skipped.append(Skipped(f"entry {i}", "no text"))
    return prompts, skipped


def _vbench(entries: list[dict[str, Any]]) -> list[str]:
    """All prompts in turn, five times; then those of which more videos are needed, in turn."""
    wanted: dict[str, int] = {}
    for entry in entries:
        count = max(map(needed, entry["dimension"]))
        wanted[entry["prompt_en"]] = max(count, wanted.get(entry["prompt_en"], 0))
    rounds = max(wanted.values())
    return [prompt for i in range(rounds) for prompt, count in wanted.items() if count > i]


def _coco(annotations: list[Any]) -> tuple[list[str], list[Skipped]]:
    first: dict[int, tuple[int, str]] = {}
    skipped: list[Skipped] = []
    for i, entry in enumerate(annotations):
        try:
            image, number, text = entry["image_id"], entry["id"], " ".join(entry["caption"].split())
        except (KeyError, TypeError, AttributeError):
            skipped.append(Skipped(f"annotation {i}", "without image_id, id or caption"))
            continue
        if not text:
            skipped.append(Skipped(f"annotation {i}", "empty caption"))
        elif image not in first or number < first[image][0]:
            first[image] = (number, text)
    return [first[image][1] for image in sorted(first)], skipped
