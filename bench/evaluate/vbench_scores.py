"""VBench by its own package: on its own prompts where there are enough videos, else on any.

VBench defines each dimension on prompts of its own, five videos a prompt. A dimension has VBench's
name here only if those were generated; on other prompts six dimensions can be measured, and are
called "(own prompts)". The total exists where all sixteen are VBench's.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bad_input import BadInput
from ..compare.frames import slug
from .settings import write_atomically
from .vbench_run import FAILURES
from .vbench_total import (
    PER_STILL_PROMPT,
    PREFIX,
    QUALITY,
    SEMANTIC,
    STILL,
    TOTAL,
    needed,
    totals,
)
from .videos import Videos

SCRIPT = Path(__file__).with_name("vbench_run.py")
OF_ANY_VIDEO = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
"""Dimensions that VBench's README supports for videos and prompts of one's own."""

_PROBE = (
    "import json, os, importlib.metadata as m, vbench;"
    "v = [d.version for d in m.distributions(name='vbench')] or ['unknown'];"
    "print(json.dumps([os.path.dirname(vbench.__file__), v[0]]))"
)


@dataclass(frozen=True)
class Package:
    """An installed VBench: the interpreter that imports it, its folder and version."""

    python: str
    folder: Path
    version: str

    @property
    def full_info(self) -> Path:
        """VBench's prompts, each with the dimensions that it is for."""
        return self.folder / "VBench_full_info.json"


@dataclass
class Scores:
    """Numbers by variant and name; why others are not there: they failed, or are not defined."""

    values: dict[str, dict[str, float]] = field(default_factory=dict[str, "dict[str, float]"])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    undefined: dict[str, str] = field(default_factory=dict[str, str])


def find(python: str | None) -> Package | str:
    """The package as this interpreter has it, or another one if given; a string says why not.

    Raises:
        BadInput: an interpreter was given and cannot import it, or videos cannot be written here.

    """
    try:
        import av  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        reason = f"{PREFIX} reads mp4 files and writing them needs: pip install av"
        if python:
            raise BadInput(reason) from None
        return reason
    interpreter = os.path.abspath(shutil.which(python) or python) if python else sys.executable
    try:
        command = [interpreter, "-c", _PROBE]
        asked = subprocess.run(command, capture_output=True, text=True, check=True)
        folder, version = json.loads(asked.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        reason = (said.strip().splitlines() or ["nothing said"])[-1]
        if python:
            raise BadInput(f"--vbench {python}: it does not import vbench ({reason})") from None
        return (
            f"{reason}: pip install vbench, here or in an environment of its own whose "
            "interpreter is given as --vbench PYTHON"
        )
    found = Package(interpreter, Path(folder), version)
    if not found.full_info.is_file():
        reason = f"{found.full_info} is not there: copy it from github.com/Vchitect/VBench"
        if python:
            raise BadInput(reason)
        return reason
    return found


def measure(
    package: Package,
    videos: Videos,
    variants: Sequence[str],
    captions: Sequence[str],
    *,
    work: Path,
    device: str,
) -> Scores:
    """Judge `captions`' videos of every variant; results that are there are not made again."""
    suite = prompts_of(package.full_info)
    indices: dict[str, list[int]] = {}
    for i, caption in enumerate(captions):
        indices.setdefault(caption, []).append(i)
    standard, found = _coverage(suite, indices), Scores()
    complete = {*standard}
    any_video = [name for name in OF_ANY_VIDEO if name not in standard]
    for variant in variants:
        out = work / f"{slug(variant)}-{len(captions)}"
        shutil.rmtree(out / "videos", ignore_errors=True)
        wanted: list[dict[str, Any]] = []
        if standard:
            known = {p: indices[p] for name in standard for p in suite[name]}
            folder = _links(out / "videos" / "suite", _suite_names(known), videos, variant)
            wanted += [_dimension(n, "vbench_standard", folder, {}) for n in standard]
        if any_video:
            names = {f"{i:06}.mp4": i for i in range(len(captions))}
            folder = _links(out / "videos" / "own", names, videos, variant)
            texts = {name: captions[i] for name, i in names.items()}
            wanted += [_dimension(n, "custom_input", folder, texts) for n in any_video]
        values, failed = _run(package, wanted, out, device)
        own = {f"{shown(n)} (own prompts)": v for n, v in values.items() if n not in standard}
        named = {n: v for n, v in values.items() if n in standard}
        complete &= named.keys()
        found.values[variant] = {shown(n): v for n, v in named.items()} | totals(named) | own
        found.failed |= {shown(n): f"{variant}: {reason}" for n, reason in failed.items()}
    if standard:  # else all are, and the total's line says it
        lacking = (name for name in suite if name not in standard)
        found.undefined |= {shown(n): _too_few(n, suite[n], indices) for n in lacking}
    if len(complete) < len(suite):
        found.undefined[TOTAL] = (
            f"VBench defines it by {len(suite)} dimensions on its own prompts; {len(complete)} are "
            f"there (all prompts: --prompts {package.full_info.name} of its package)"
        )
    return found


def shown(dimension: str) -> str:
    """A dimension's name as people read it, `VBench subject consistency`."""
    return f"{PREFIX} {dimension.replace('_', ' ')}"


def prompts_of(full_info: Path) -> dict[str, list[str]]:
    """VBench's distinct prompts of each dimension, in the order in which dimensions run."""
    entries = json.loads(full_info.read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {name: [] for name in (*QUALITY, *SEMANTIC)}
    for entry in entries:
        for name in entry["dimension"]:
            if name in found and entry["prompt_en"] not in found[name]:
                found[name].append(entry["prompt_en"])
    return found


def _coverage(suite: dict[str, list[str]], indices: dict[str, list[int]]) -> list[str]:
    """Dimensions with enough videos of every prompt."""
    return [
        name
        for name, prompts in suite.items()
        if prompts and all(len(indices.get(p, ())) >= needed(name) for p in prompts)
    ]


def _too_few(name: str, prompts: list[str], indices: dict[str, list[int]]) -> str:
    enough = sum(len(indices.get(p, ())) >= needed(name) for p in prompts)
    return (
        f"VBench defines it by {needed(name)} videos of each of its {len(prompts)} prompts; "
        f"{enough} of them have so many"
    )


def _suite_names(indices: dict[str, list[int]]) -> dict[str, int]:
    """File names as VBench looks for them, `PROMPT-0.mp4` and so on."""
    return {
        f"{prompt}-{k}.mp4": i
        for prompt, own in indices.items()
        for k, i in enumerate(own[:PER_STILL_PROMPT])
    }


def _links(folder: Path, names: dict[str, int], videos: Videos, variant: str) -> Path:
    folder.mkdir(parents=True)
    for name, index in names.items():
        (folder / name).symlink_to(videos.path(variant, index).resolve())
    return folder


def _dimension(name: str, mode: str, folder: Path, prompts: dict[str, str]) -> dict[str, Any]:
    where = str(folder.resolve())
    return {"name": name, "mode": mode, "videos": where, "prompts": prompts, "still": name == STILL}


def _run(
    package: Package, wanted: list[dict[str, Any]], out: Path, device: str
) -> tuple[dict[str, float], dict[str, str]]:
    """Values and failures by dimension; the package runs for those that have no result yet."""
    todo = [one for one in wanted if _result(out, one["name"]) is None]
    failed: dict[str, str] = {}
    if todo:
        job = out / "job.json"
        about = {"device": device, "full_info": str(package.full_info), "out": str(out.resolve())}
        write_atomically(job, json.dumps(about | {"dimensions": todo}))
        (out / FAILURES).unlink(missing_ok=True)
        command = [package.python, str(SCRIPT), str(job.resolve())]
        with (out / "log.txt").open("a") as log:
            # `cwd`: where it stands, VBench may leave files.
            ended = subprocess.run(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=out,
                env=_environment(),
                check=False,
            )
        said = out / FAILURES
        failed = json.loads(said.read_text()) if said.exists() else {}
        for one in todo:
            if _result(out, one["name"]) is None:
                nothing = f"no finite number in its result (exit code {ended.returncode})"
                failed.setdefault(one["name"], nothing)
    found = {one["name"]: _result(out, one["name"]) for one in wanted}
    return {name: value for name, value in found.items() if value is not None}, failed


def _environment() -> dict[str, str]:
    """What this process has, without what torchrun tells its own."""
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in ours}


def _result(out: Path, dimension: str) -> float | None:
    """VBench's own mean: of `{dimension: [mean, [one a video]]}` the first."""
    try:
        document = json.loads((out / f"{dimension}_eval_results.json").read_text("utf-8"))
        value = float(document[dimension][0])
    except (OSError, ValueError, LookupError, TypeError):
        return None  # none, or half of one
    return value if math.isfinite(value) else None
