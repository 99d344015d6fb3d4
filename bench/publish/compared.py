"""Tables of `ditcache compare`: methods and combinations side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .markdown import mean, number, read, times
from .markdown import table as markdown_table

HEAD = (
    "",
    "method",
    "s",
    "speedup",
    "MACs fewer",
    "peak MiB",
    "PSNR",
    "SSIM",
    "EffLite0-distance",
    "neighbour SSIM",
    "motion",
)
BASELINES = ("M0", "M0-again")


def table(results: Path, model: str, names: str = "all") -> str:
    """Rows of a comparison; `names` are given by commas."""
    found = read(results, f"compare-{model}/compare")
    wanted = names.split(",") if names != "all" else [r["name"] for r in found["rows"]]
    rows = {r["name"]: r for r in found["rows"]}
    return markdown_table(HEAD, [_row(rows[name]) for name in wanted])


def _row(row: dict[str, Any]) -> list[str]:
    if row["status"] != "ok":
        return [row["name"], f"{row['title']}: {row['reason']}", *[""] * (len(HEAD) - 2)]
    quality, baseline = row["quality"], row["name"] in BASELINES
    same = quality["psnr"]["worst"] >= 100 and not baseline
    peak = row.get("peak_bytes")
    return [
        row["name"],
        row["title"],
        number(row.get("seconds")),
        times((row.get("speedup") or {}).get("median")),
        times(row.get("macs_reduction")),
        number(peak / 2**20 if peak else None, ".0f"),
        "same bits" if same else "" if baseline else mean(quality, "psnr", ".1f"),
        "" if baseline else mean(quality, "ssim", ".4f"),
        "" if baseline else mean(quality, "distance", ".4f"),
        mean(quality, "temporal_ssim", ".3f"),
        mean(quality, "motion", ".4f"),
    ]


def gains(results: Path, model: str) -> str:
    """Whether gains multiply, and what single method a combination is measured against."""
    found = read(results, f"compare-{model}/compare")
    singles = {r["name"]: r for r in found["against_singles"]}
    rows: list[list[str]] = []
    for made in found["combinations"]:
        if made["status"] != "ok" or made.get("speedup") is None:
            rows.append([made["name"], made.get("reason") or made["status"], "", "", ""])
            continue
        single = singles.get(made["name"], {})
        best = single.get("fastest_as_good")
        rows.append(
            [
                made["name"],
                times(made["speedup"]),
                times(made.get("speedup_product")),
                number(made.get("speedup_over_product")),
                f"{best}, {times(single['its_speedup'])}" if best else "none",
            ]
        )
    head = ("", "speedup", "product of its parts", "over it", "fastest single at least as close")
    return markdown_table(head, rows)


def recommended(results: Path, model: str) -> str:
    """What the report's rules choose."""
    found = read(results, f"compare-{model}/compare")["recommendations"]
    rows = [
        [r["goal"], r["name"], times(r["speedup"]), number(r["psnr"], ".1f", " dB"), r["rule"]]
        for r in found
    ]
    return markdown_table(("for", "", "speedup", "PSNR", "rule"), rows)
