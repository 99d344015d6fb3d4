"""What `python -m bench.gpu` runs, in order, within the time that it was given."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..environment import ROOT, commit, environment, write_json
from ..ledger import Ledger
from .choice import Choice
from .criteria import criteria, outcomes, shown
from .table import markdown, rows
from .worker import CASES, Exit, run

MINUTES = 9.0
QUICK = ("dit-xl-2", "flux-dev", "wan2.1-1.3b")
TESTED = ("tests/kernels", "tests/runtime", "tests/policies")
"""Where the tests marked `gpu` are: other folders need packages that measuring does not."""
RESTARTS = 3
NO_DEVICE = (
    "bench.gpu measures on a CUDA device and finds none: torch {torch} {built}. Run it on a "
    "machine with an NVIDIA GPU and a CUDA build of torch."
)


@dataclass(frozen=True)
class Part:
    """A process of its own that may take `most` seconds."""

    name: str
    command: list[str]
    most: float = float("inf")


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
        return run(case.model, lambda: case.load(torch.device("cuda")), choice, ledger,
                   until=given.until)  # fmt: skip
    until = time.time() + 60 * given.minutes
    quick = ["--quick"] * given.quick
    command = [sys.executable, "-m", __package__ or "bench.gpu", "--out", str(given.out), *quick]
    kernels = [sys.executable, "-m", "bench.kernels", "--out", str(given.out / "kernels.json")]
    parts = [
        Part("tests", _tests(given.out), most=180),
        Part("kernels", kernels + quick, most=120),
    ]
    for name in given.models or (QUICK if given.quick else CASES):
        parts.append(Part(name, [*command, "--worker", name, "--until", str(until)]))
    about = {"environment": environment("bench.gpu")}
    left = run_parts(parts, ledger, until, lambda: _report(ledger, given.out, about))
    document = _report(ledger, given.out, about | {"not_reached": left})
    print(markdown(ledger.records.values()))
    print(shown(document["criteria"]))
    if left:
        print(f"no time was left for {', '.join(left)}: run the same command again")
    return 0


def _report(ledger: Ledger, out: Path, about: dict[str, Any]) -> dict[str, Any]:
    """All that was measured so far, and what it has to show; written to `gpu.json`."""
    found = rows(ledger.records.values())
    kernels, tests = out / "kernels.json", out / "tests.xml"
    measured: dict[str, Any] = json.loads(kernels.read_text()) if kernels.exists() else {}
    document = about | {
        "criteria": criteria(found, measured),
        "parts": [r for r in ledger.records.values() if "way" not in r],
        "tests": outcomes(tests.read_text()) if tests.exists() else [],
        "kernels": measured,
        "rows": found,
    }
    write_json(out / "gpu.json", document)
    return document


def run_parts(
    parts: Sequence[Part], ledger: Ledger, until: float, done: Callable[[], Any] = lambda: None
) -> list[str]:
    """Run each part that the ledger has no exit status of; gives those that there was no time for.

    A part that fails is written down with the end of what it said, and the next one runs; all that
    it said is in `log.txt`. A worker whose device broke down is started again for what it has left.
    `done` is called after each part, when what it wrote into the ledger's file is read.
    """
    left: list[str] = []
    for part in parts:
        if ledger.records.get(f"part {part.name}", {}).get("status") == Exit.DONE:
            continue
        started, status, said = time.time(), Exit.BROKEN, ""
        tries = 0
        while status == Exit.BROKEN and tries <= RESTARTS and time.time() < until:
            print(f"{part.name} …", flush=True)
            status, told = _run(part.command, min(until - time.time() + 30, part.most))
            said, tries = said + told, tries + 1
        if not tries or status == Exit.OUT_OF_TIME:
            left.append(part.name)
        if tries:
            seconds = round(time.time() - started, 1)
            record = {"status": int(status), "seconds": seconds, "end": said[-2000:]}
            ledger.put(f"part {part.name}", record)
            with (ledger.path.parent / "log.txt").open("a") as log:
                log.write(f"== {part.name}, status {int(status)}, {seconds} s\n{said}\n")
            ledger.records |= Ledger(ledger.path, ledger.key).records
            done()
    return left


def _run(command: list[str], seconds: float) -> tuple[int, str]:
    """Run a command; gives its exit status and all that it said.

    Out of time all that it started ends with it, compilers too; what it says goes into a file,
    which nothing that lives on can keep open.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        status, late = int(Exit.OUT_OF_TIME), f"\nout of time after {seconds:.0f} s"
        try:
            status, late = process.wait(seconds), ""
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        return status, said.read() + late


def _tests(out: Path) -> list[str]:
    options = ["-q", "-m", "gpu", "-o", "addopts=--import-mode=importlib -ra --strict-markers"]
    options += ["--continue-on-collection-errors", f"--junitxml={out / 'tests.xml'}"]
    return [sys.executable, "-m", "pytest", *options, *TESTED]
