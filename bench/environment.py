"""Where and with what a number was measured, so that it can be judged and made again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ditcache", "torch", "diffusers", "numpy", "scipy", "torchmetrics")
# Options whose value is a place on this machine and says nothing elsewhere.
_PATHS = ("--out", "--work")


def environment(module: str) -> dict[str, Any]:
    """Hardware, versions, commit and command of this run of `python -m <module>`."""
    return {
        "hardware": hardware(),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "commit": commit(),
        "command": command(module, sys.argv[1:]),
    }


def hardware() -> dict[str, Any]:
    """Describe what ran: processor, cores, threads, memory, GPU."""
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": round(os.getloadavg()[0], 2),
    }


def commit() -> str:
    """Return the commit of the tree, "+changes" where tracked files differ from it."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed else "")


def command(module: str, arguments: list[str]) -> str:
    """Return the command line without options that name places."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in _PATHS:
            skip = True
        elif not argument.startswith(tuple(f"{p}=" for p in _PATHS)):
            kept.append(argument)
    return " ".join(["python", "-m", module, *kept])


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write indented JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
