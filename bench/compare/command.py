"""`ditcache compare`: run the study, write `compare.json`, `frames.png` and the table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from ..arguments import writable
from ..environment import environment, write_json
from .combine import label
from .figure import save_figure
from .frames import frames_path, load_frames
from .judge import DISTANCE, IMAGE_SIM
from .recommend import recommend, undominated
from .rows import make_rows, matrix
from .settings import Settings
from .study import Study
from .subjects import load
from .table import table

DOCUMENT, FIGURE, CLIPS = "compare.json", "frames.png", "clips"
SHOWN_SAMPLES = 4
ALL_RAN, SOME_DID_NOT = 0, 1


def run(settings: Settings, out: Path, work: Path, console: Console) -> int:
    """Run or go on; 0 if all is there, 1 if rows or inputs are missing (each says why)."""
    writable(out)
    study = Study(settings, writable(work), console)
    study.run()
    rows = make_rows(settings, study.journal, study.judged)
    before = _before(out) if settings.only_timing else None
    if before is not None:
        _keep_quality(rows, before)
    document = _document(settings, study, rows)
    if before is not None:
        document["samples"] = before["samples"]
        document["clips"] = before["clips"]
    elif not study.unjudged:
        document["clips"] = _save_clips(study, document, out)
    write_json(out / DOCUMENT, document)
    console.print(table(document))
    if study.unjudged:
        console.print(f"quality columns are empty: {study.unjudged}")
    for row in rows:
        if row["status"] != "ok" or row["reason"]:
            console.print(f"{row['name']}: {row['status']}: {row['reason']}")
    if document["gpu_sensor"]:
        console.print(f"no temperature or power of a GPU: {document['gpu_sensor']}")
    for one in document["skipped"]:
        console.print(f"{one['name']}: left out: {one['reason']}")
    for one in document["recommendations"]:
        console.print(f"{one['goal']}: {one['name'] or 'none'} ({one['rule']})")
    console.print(f"written to {out / DOCUMENT}; make the page: ditcache report {out}")
    complete = all(row["status"] == "ok" for row in rows) and not document["skipped"]
    return ALL_RAN if complete else SOME_DID_NOT


def _document(settings: Settings, study: Study, rows: list[dict[str, Any]]) -> dict[str, Any]:
    known = study.journal.of("prepared")
    about: dict[str, Any] = known[0] if known else {}
    names = about.get("names", [])
    if study.unjudged:
        names = names[: settings.timing_samples]
    request = asdict(settings.request)
    request.pop("inputs")  # a place on one machine
    return {
        "what": "ditcache compare",
        "title": f"{about.get('model', settings.request.model)}, {len(names)} inputs, "
        f"{about.get('full_steps', '?')} steps, {settings.request.dtype}",
        "model": about.get("model", settings.request.model),
        "kind": about.get("kind"),
        "environment": environment("ditcache.bench.compare"),
        "settings": asdict(settings) | {"request": request},
        "arguments": about.get("arguments", {}),
        "steps": about.get("full_steps"),
        "fingerprint": about.get("fingerprint"),
        "samples": names,
        "skipped": about.get("skipped", []),
        "unjudged": study.unjudged,
        "clips": [],
        "gpu_sensor": about.get("gpu_sensor"),
        "measures": {
            "distance": DISTANCE,
            "image_sim": IMAGE_SIM,
            "memory": "CUDA allocator" if settings.request.device == "cuda" else "resident set",
        },
        "rows": rows,
        "combinations": matrix(rows),
        "recommendations": [asdict(one) for one in recommend(rows)],
        "against_singles": undominated(rows),
    }


def _save_clips(study: Study, document: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """Save the figure, and a few samples of each method as lossy WebP strips for the report."""
    from .clips import save_clip

    subject = load(study.settings.request)
    ran = [row["name"] for row in document["rows"] if row["status"] == "ok"]
    listed: list[dict[str, Any]] = []
    for index, sample in enumerate(subject.samples[:SHOWN_SAMPLES]):
        videos = {
            name: load_frames(path)
            for name in ran
            if (path := frames_path(study.work, name, sample.name)).exists()
        }
        if not index:
            labels = {name: f"{name}\n{_wrapped(label(name))}" for name in videos}
            save_figure(out / FIGURE, videos, labels, sample.image)
        entry: dict[str, Any] = {"sample": sample.name, "seed": sample.seed, "methods": {}}
        for name, frames in videos.items():
            entry["methods"][name] = save_clip(out / CLIPS, name, index, frames)
        if sample.image is not None:
            from .judge import as_tensor

            entry["input"] = save_clip(out / CLIPS, "input", index, as_tensor(sample.image))
        listed.append(entry)
    return listed


def _keep_quality(rows: list[dict[str, Any]], before: dict[str, Any]) -> None:
    """Take over what a timing run does not measure."""
    known = {row["name"]: row for row in before["rows"]}
    for row in rows:
        old = known.get(row["name"])
        if row["status"] == "ok" and old and old["status"] == "ok":
            row["quality"] = old["quality"]


def _before(out: Path) -> dict[str, Any] | None:
    path = out / DOCUMENT
    return json.loads(path.read_text()) if path.exists() else None


def _wrapped(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, 24))
