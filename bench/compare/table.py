"""The table for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from .judge import DISTANCE, IMAGE_SIM

HEADINGS = (
    "steps",
    "s",
    "±",
    "s/frame",
    "speedup",
    "loop",
    "fewer MACs",
    "peak MiB",
    "PSNR",
    "SSIM",
    DISTANCE,
    IMAGE_SIM,
    "t-SSIM",
    "motion",
    "collapsed",
)


def table(document: dict[str, Any]) -> Table:
    """Rows that ran with their numbers, others with their reason."""
    shown = Table(title=document["title"], box=None, pad_edge=False, title_justify="left")
    shown.add_column("method", no_wrap=True)
    for heading in HEADINGS:
        shown.add_column(heading, justify="right", no_wrap=heading != "collapsed")
    for row in document["rows"]:
        if row["status"] != "ok":
            shown.add_row(row["name"], *[""] * (len(HEADINGS) - 1), f"{row['status']}")
            continue
        quality = row["quality"]
        shown.add_row(
            row["name"],
            str(row["steps"]),
            _number(row.get("seconds"), ".2f"),
            _number(row.get("seconds_spread"), ".0%"),
            _number(row.get("seconds_per_frame"), ".3f"),
            _number((row.get("speedup") or {}).get("median"), ".2f", "x"),
            _number((row.get("loop_speedup") or {}).get("median"), ".2f", "x"),
            _number(row.get("macs_reduction"), ".2f", "x"),
            _number((row.get("peak_bytes") or 0) / 2**20 or None, ".0f"),
            _number((quality["psnr"] or {}).get("mean"), ".2f"),
            _number((quality["ssim"] or {}).get("mean"), ".4f"),
            _number((quality["distance"] or {}).get("mean"), ".4f"),
            _number((quality["image_sim"] or {}).get("mean"), ".4f"),
            _number((quality["temporal_ssim"] or {}).get("mean"), ".4f"),
            _number((quality["motion"] or {}).get("mean"), ".4f"),
            ", ".join(f"{n} {what}" for what, n in quality["collapsed"].items()),
        )
    return shown


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
