"""What `python -m bench.gpu` runs, in order, within the time that it was given."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..environment import ROOT, commit, environment, write_json
from ..ledger import Ledger
from .table import markdown, rows
from .ways import Choice
from .worker import CASES, run

MINUTES = 9.5
QUICK = ("dit-xl-2", "flux-dev", "wan2.1-1.3b")
NO_DEVICE = (
    "bench.gpu measures on a CUDA device and finds none: torch {torch} {built}. Run it on a "
    "machine with an NVIDIA GPU and a CUDA build of torch."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse options and run; gives the exit status: 2 without a CUDA device."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for results; resumes there")
    parser.add_argument("--quick", action="store_true", help="fewer models and ways")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="start nothing after that")
    parser.add_argument("--models", nargs="*", choices=list(CASES), help="instead of all")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=float("inf"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    given.out = given.out.absolute()
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        print(NO_DEVICE.format(torch=torch.__version__, built=built), file=sys.stderr)
        return 2
    choice = Choice(quick=given.quick)
    key = f"{torch.cuda.get_device_name()} {torch.__version__} {commit()}"
    ledger = Ledger(given.out / "results.jsonl", key)
    if given.worker:
        case = CASES[given.worker]
        done = run(case.model, lambda: case.load(torch.device("cuda")), choice, ledger,
                   until=given.until)  # fmt: skip
        return 0 if done else 3
    until = time.time() + 60 * given.minutes
    command = [sys.executable, "-m", __package__ or "bench.gpu", "--out", str(given.out)]
    parts: list[tuple[str, list[str]]] = [("tests", _tests(given.out))]
    kernels = [sys.executable, "-m", "bench.kernels", "--out", str(given.out / "kernels.json")]
    parts.append(("kernels", kernels + ["--quick"] * given.quick))
    names = given.models or (QUICK if given.quick else CASES)
    quick = ["--quick"] if given.quick else []
    for name in names:
        parts.append((name, [*command, *quick, "--worker", name, "--until", str(until)]))
    left = run_parts(parts, ledger, until)
    document = {"environment": environment("bench.gpu"), "not_reached": left}
    parts_run = [r for r in ledger.records.values() if "way" not in r]
    write_json(given.out / "gpu.json",
               document | {"parts": parts_run, "rows": rows(ledger.records.values())})  # fmt: skip
    print(markdown(ledger.records.values()))
    if left:
        print(f"no time was left for {', '.join(left)}: run the same command again")
    return 0


def run_parts(parts: list[tuple[str, list[str]]], ledger: Ledger, until: float) -> list[str]:
    """Run each part that the ledger has no exit status of; gives those that there was no time for.

    A part that fails is written down with the end of what it said, and the next one runs. What a
    worker writes into the ledger's file is read when all are done.
    """
    left: list[str] = []
    for name, command in parts:
        if ledger.records.get(f"part {name}", {}).get("status") == 0:
            continue
        spare = until - time.time()
        if spare <= 0:
            left.append(name)
            continue
        print(f"{name} …", flush=True)
        started = time.time()
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=spare + 30, check=False
            )
            status, said = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            status, said = 3, "out of time"
        if status == 3:
            left.append(name)
        seconds = round(time.time() - started, 1)
        ledger.put(f"part {name}", {"status": status, "seconds": seconds, "end": said[-2000:]})
    ledger.records |= Ledger(ledger.path, ledger.key).records
    return left


def _tests(out: Path) -> list[str]:
    report = f"--junitxml={out / 'tests.xml'}"
    return [sys.executable, "-m", "pytest", "-q", "-m", "gpu", report, "tests"]
