"""ditcache-opt's reports on the passes, and where its result goes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .opt_load import InputError
from .pipeline import Report


def times_text(report: Report) -> str:
    """The table that --time-passes prints: seconds and share of each pass."""
    total = sum(s for _, s in report.seconds)
    lines = [f"{'pass':<18}{'seconds':>9}{'share':>8}"]
    for name, seconds in report.seconds:
        lines.append(f"{name:<18}{seconds:>9.3f}{seconds / total if total else 0:>8.1%}")
    lines.append(f"{'total':<18}{total:>9.3f}")
    return "\n".join(lines) + "\n"


def statistics_text(report: Report) -> str:
    """What --pass-statistics prints: one line for each pass."""
    lines: list[str] = []
    for name, stats in report.stats:
        figures = ", ".join(f"{k}: {v}" for k, v in stats.items()) or "nothing to report"
        lines.append(f"{name}: {figures}\n")
    return "".join(lines)


def check_writable(path: Path | None) -> None:
    """Find out before the work that the result has nowhere to go; raises InputError."""
    if path is None:
        return
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"cannot write {path}: not a file in a folder that exists and is writable")


def write(text: str, path: Path | None) -> None:
    """Write the result to a file, or to stdout where there is none; raises InputError."""
    if path is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        path.write_text(text)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
