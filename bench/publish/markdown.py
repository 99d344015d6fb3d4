"""Markdown tables, and numbers as they are written in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table; the first column may be without a name."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else f"{value:{form}}{unit}"


def times(value: float | None) -> str:
    """A factor: 2.03x."""
    return number(value, ".2f", "x")


def change(value: float) -> str:
    """A relative change in per cent, with its sign."""
    text = f"{100 * value:+.1f}%"
    return "0.0%" if text[1:] == "0.0%" else text.replace("-", "\u2212")


def mean(metrics: dict[str, Any], name: str, form: str) -> str:
    """The mean of a metric over samples."""
    found = metrics.get(name)
    return "" if not found else number(found["mean"], form)


def read(results: Path, name: str) -> dict[str, Any]:
    """A committed result by its name without `.json`."""
    return json.loads((results / f"{name}.json").read_text())
