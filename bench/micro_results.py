"""Microbenchmarks in brief: runs bench/micro and keeps each one's name, median, spread and rounds.

`python -m bench.micro_results --out bench/results/micro.json`; further arguments go to pytest, for
example `-k dispatch`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arguments import Parser
from .environment import ROOT, environment, write_json


def brief(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Reduce pytest-benchmark's report to what is compared later; seconds."""
    rows: list[dict[str, Any]] = []
    for found in report["benchmarks"]:
        stats = found["stats"]
        row = {"name": f"{Path(found['fullname'].split('::')[0]).stem}::{found['name']}"}
        row |= {"median": float(f"{stats['median']:.4g}"), "iqr": float(f"{stats['iqr']:.3g}")}
        rows.append(row | {"rounds": stats["rounds"]} | found["extra_info"])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, reduce, write; gives pytest's exit code."""
    parser = Parser("bench.micro_results", __doc__)
    parser.out(required=True)
    args, more = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = ["--benchmark-only", f"--benchmark-json={report}", *more]
        command = [sys.executable, "-m", "pytest", "bench/micro", *options]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if not report.is_file() or not report.stat().st_size:
            return code or 1
        rows = brief(json.loads(report.read_text()))
    write_json(args.out, {"environment": environment("bench.micro_results"), "benchmarks": rows})
    return code


if __name__ == "__main__":
    sys.exit(main())
