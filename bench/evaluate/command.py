"""`ditcache evaluate`: samples of a model against a reference set, and cached against uncached."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ditcache
import torch
from ditcache import Plan
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from ..compare.clips import save_clip
from ..compare.inputs import Sample, Skipped
from ..compare.subjects import Subject, load
from ..environment import environment, write_json
from ..features import SPACE
from . import vbench_scores
from .blocks import Blocks, Producer, compiled, generate
from .checks import REAL, UnusableReference, check, enough_steps
from .moments import Moments
from .prompts import load_prompts
from .results import reference_moments, results, seconds, work
from .scorers import Panel, distance_name, panel
from .settings import UNCACHED, Ranks, Settings, write_atomically
from .vbench_total import TOTAL
from .videos import Videos

DOCUMENT, CLIPS = "evaluate.json", "clips"
Reference = tuple[dict[str, Moments], int, list[str]]
NO_REFERENCE: Reference = ({}, 0, [])
CALIBRATION_SEED, CALIBRATION_SAMPLES = 5_000_000, 16
ALL_RAN, SOME_DID_NOT = 0, 1


def run(settings: Settings, prompts: Path | None, out: Path, console: Console) -> int:
    """Run or go on; 0 if all was measured, 1 if something asked for could not be."""
    ranks = Ranks.here()
    if settings.request.device == "cuda":
        torch.cuda.set_device(ranks.local)
    given = check(settings, out)
    package = vbench_scores.find(settings.vbench)
    judges = panel(settings.weights, settings.request.device)
    for role in settings.weights.keys() & judges.missing.keys():
        console.print(f"{role}: will not be measured: {judges.missing[role]}")
    subject, skipped = prepare(settings, prompts)
    enough_steps(settings, subject.steps)
    references = _references(settings, subject, judges, out) if ranks.rank == 0 else NO_REFERENCE
    plans, calibrating = _plans(settings, subject, given, out / "work", ranks)
    texts = {name: plan.to_json() for name, plan in plans.items()}
    distinct = list(dict.fromkeys(_captions(settings, subject)))
    key = settings.key(subject.fingerprint_of_weights(), distinct, texts)
    blocks = Blocks(out / "work" / "blocks", key, settings)
    filmed = isinstance(package, vbench_scores.Package) and subject.kind == "text-to-video"
    videos = Videos(out / "work" / "videos" / key) if filmed else None
    producer = Producer(settings, subject, plans, judges, videos)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=ranks.rank > 0) as progress:
        total = sum(len(settings.indices(b)) for b in ranks.mine(settings.blocks))
        task = progress.add_task("samples", total=total)
        producer.run(blocks, ranks, lambda n: progress.advance(task, n))
    ranks.meet()
    if ranks.rank:
        return ALL_RAN
    document = _document(
        settings, subject, blocks, plans=plans, judges=judges, references=references, out=out
    )
    document["skipped_prompts"] = [asdict(s) for s in skipped]
    document["calibration"] = calibrating
    failed = bool(settings.weights.keys() & document["missing"].keys())
    failed |= _vbench(document, package, producer, out / "work" / "vbench" / key)
    write_json(out / DOCUMENT, document)
    console.print(table(document))
    for name, reason in document["missing"].items():
        console.print(f"{name}: not measured: {reason}")
    for one in skipped:
        console.print(f"{one.name}: left out: {one.reason}")
    console.print(f"written to {out / DOCUMENT}")
    return SOME_DID_NOT if failed or skipped else ALL_RAN


def prepare(settings: Settings, prompts: Path | None) -> tuple[Subject, list[Skipped]]:
    """Load the model and give it `count` samples: prompts in turn, each sample a seed of its own.

    Without a file of prompts the model's own held-out inputs are taken.
    """
    request = settings.request
    if prompts is None:
        subject = load(replace(request, count=settings.count))
        skipped = subject.skipped
        own = subject.samples
    else:
        texts, skipped = load_prompts(prompts)
        subject = load(replace(request, inputs=None, prompts=tuple(texts)))
        own = subject.samples
    first = request.seed
    subject.samples = [replace(own[i % len(own)], seed=first + i) for i in range(settings.count)]
    return subject, skipped


def _captions(settings: Settings, subject: Subject) -> list[str]:
    return [s.caption or "" for s in subject.samples[: settings.count]]


def table(document: dict[str, Any]) -> Table:
    """One column a variant, one row a measure."""
    shown = Table(title=document["title"], box=None, pad_edge=False, title_justify="left")
    variants: dict[str, dict[str, Any]] = document["variants"]
    shown.add_column("", no_wrap=True)
    for name in variants:
        shown.add_column(name, justify="right")
    for measure in dict.fromkeys(m for entry in variants.values() for m in entry):
        shown.add_row(measure, *(_cell(entry.get(measure)) for entry in variants.values()))
    return shown


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['mean']:.4f} ({value['low']:.4f}-{value['high']:.4f})"
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else str(value)


def _vbench(
    document: dict[str, Any], package: vbench_scores.Package | str, producer: Producer, work: Path
) -> bool:
    """Add VBench's scores to the document, or why there are none; tells if asked for in vain."""
    subject, videos, settings = producer.subject, producer.videos, producer.settings
    missing, asked = document["missing"], settings.vbench is not None
    if videos is None or isinstance(package, str):
        if subject.kind == "text-to-video":
            missing[TOTAL] = package
        elif asked:
            missing[TOTAL] = f"VBench judges text to video; {subject.name} is {subject.kind}"
        return asked
    device = settings.request.device
    captions = _captions(settings, subject)
    if device.startswith("cuda"):  # VBench's networks need the room
        subject.pipeline.to("cpu")
        torch.cuda.empty_cache()
    variants = list(document["variants"])
    scores = vbench_scores.measure(package, videos, variants, captions, work=work, device=device)
    for variant, found in scores.values.items():
        document["variants"][variant] |= {name: round(v, 6) for name, v in found.items()}
    document["vbench"] = package.version
    missing |= scores.failed | scores.undefined
    return asked and bool(scores.failed)


def _document(
    settings: Settings,
    subject: Subject,
    blocks: Blocks,
    *,
    plans: dict[str, Plan],
    judges: Panel,
    references: Reference,
    out: Path,
) -> dict[str, Any]:
    moments, size, unreadable = references
    variants = [UNCACHED, *plans]
    missing = dict(judges.missing)
    if not any(s.caption for s in subject.samples):
        missing["text similarity"] = "the samples have no captions"
    request = asdict(settings.request)
    for place in ("inputs", "prompts"):
        request.pop(place)
    return {
        "what": "ditcache evaluate",
        "title": f"{subject.name}, {settings.count} samples, {subject.steps} steps",
        "model": subject.name,
        "kind": subject.kind,
        "environment": environment("ditcache.bench.evaluate"),
        "settings": asdict(settings) | {"request": request},
        "key": blocks.key,
        "steps": subject.steps,
        "reference": {"name": settings.reference, "pictures": size, "unreadable": unreadable},
        "names": {space: distance_name(space) for space in judges.spaces},
        "variants": results(blocks, variants, judges, moments),
        "seconds_a_sample": seconds(blocks, variants),
        "plans": {
            name: {
                "computed": list(plan.regions[0].computed),
                "steps": len(plan.timesteps),
                "forecaster": plan.regions[0].forecaster,
                "schedule": plan.regions[0].schedule,
                "expected_error": plan.expected_error,
                **work(blocks, name),
            }
            for name, plan in plans.items()
        },
        "missing": missing,
        "clips": _clips(blocks, variants, subject.samples, out / CLIPS),
    }


def _references(settings: Settings, subject: Subject, judges: Panel, out: Path) -> Reference:
    """Statistics of the reference set by feature space, its size, and what could not be read."""
    if settings.reference is None:
        return NO_REFERENCE
    if settings.reference == REAL and subject.real is not None:
        rows = subject.real()
        return {SPACE: Moments.of_blocks(rows.split(32))}, len(rows), []
    if settings.reference == REAL and not Path(REAL).is_dir():
        raise UnusableReference(f"no data came with {subject.name}; give a folder of pictures")
    width, height = (subject.arguments.get(side) for side in ("width", "height"))
    size = (width, height) if width and height else None
    return reference_moments(Path(settings.reference), judges, out / "work", size)


def _plans(
    settings: Settings, subject: Subject, given: dict[str, Plan], work: Path, ranks: Ranks
) -> tuple[dict[str, Plan], dict[str, float]]:
    """Given plans, and plans made here once and kept, so that resuming finds them."""
    spent: dict[str, float] = {}
    weights = subject.fingerprint_of_weights()[:8]
    files = {
        f"{s:g}x": work / f"{s:g}x-{subject.steps}-{weights}.plan.json" for s in settings.speedups
    }
    missing = {name: path for name, path in files.items() if not path.exists()}
    if missing and ranks.rank == 0:
        started = time.perf_counter()
        name, plain = next(iter(subject.denoisers.items()))
        model = compiled(subject, settings.inner)
        samples = _calibration(subject, settings.block)
        batches = [samples[i : i + settings.block] for i in range(0, len(samples), settings.block)]
        profile = ditcache.calibrate(model, lambda i: generate(subject, batches[i]), len(batches))
        for wanted, path in missing.items():
            made = profile.plan(speedup=float(wanted.removesuffix("x")))
            write_atomically(path, made.to_json())
        setattr(subject.pipeline, name, plain)
        spent["seconds"] = round(time.perf_counter() - started, 2)
        spent["samples"] = len(samples)
    ranks.meet()
    return given | {name: Plan.load(path) for name, path in files.items()}, spent


def _calibration(subject: Subject, block: int) -> list[Sample]:
    """Other seeds than the evaluation's, and the model's calibration inputs if it has any."""
    own = subject.calibration or subject.samples
    count = max(block, CALIBRATION_SAMPLES // block * block)
    return [replace(own[i % len(own)], seed=CALIBRATION_SEED + i) for i in range(count)]


def _clips(
    blocks: Blocks, variants: list[str], samples: list[Sample], folder: Path
) -> list[dict[str, Any]]:
    """The first samples of every variant, for the page."""
    listed: list[dict[str, Any]] = []
    shown: dict[str, list[Tensor]] = {
        v: [frames.float() / 255 for rows in blocks.column(f"{v}/pictures") for frames in rows]
        for v in variants
    }
    for i in range(len(shown[UNCACHED])):
        entry: dict[str, Any] = {
            "sample": samples[i].caption or samples[i].name,
            "seed": samples[i].seed,
        }
        entry["methods"] = {v: save_clip(folder, v, i, shown[v][i]) for v in variants}
        listed.append(entry)
    return listed
