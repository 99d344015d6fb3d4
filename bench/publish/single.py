"""Tables of one result each: the demo, the clips, architectures, real sizes, overheads."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from .markdown import change, mean, number, read, table, times

CLIP_MODELS = {"wan-emoji": "Wan", "svd-emoji": "SVD"}


def demo(results: Path) -> str:
    """What `make demo` prints."""
    found = read(results, "demo")
    head = (
        "",
        "computed",
        "MACs a picture",
        "fewer",
        "wall a batch",
        "speedup",
        "realised",
        "PSNR",
        "SSIM",
        "FD-EffLite0",
        "caption sim",
    )
    return table(head, [_demo_row(row) for row in found["rows"]])


def _demo_row(row: dict[str, Any]) -> list[str]:
    uncached = row["psnr"] is None
    return [
        row["name"],
        f"{row['computed_steps']} of {row['steps']}",
        f"{row['macs'] / 1e9:.1f} G",
        times(row["macs_reduction"]),
        f"{row['wall_seconds']:.2f} s",
        times(row["speedup"]),
        "" if uncached else f"{row['realised']:.2f}",
        number(row["psnr"], ".1f", " dB"),
        number(row["ssim"], ".4f"),
        f"{row['fd_real']:.1f}",
        f"{row['caption_sim']:.3f}",
    ]


def video(results: Path) -> str:
    """Both small video models; the last three columns are changes to the uncached clips."""
    head = (
        "",
        "computed",
        "MACs fewer",
        "speedup",
        "realised",
        "PSNR",
        "SSIM",
        "neighbour SSIM",
        "neighbour distance",
        "motion",
    )
    rows: list[list[str]] = []
    for model, name in CLIP_MODELS.items():
        for row in read(results, f"video-{model}")["rows"]:
            if row["name"] == "uncached":
                continue
            planned = "psnr" in row
            changes = [
                change(row["temporal"][key]["change"])
                for key in ("ssim", "EffLite0-temporal-distance", "motion")
            ]
            rows.append(
                [
                    f"{name} {row['name']}" if planned else f"{name}, {row['name']}",
                    f"{row['computed_steps']} of {row['steps']}",
                    times(row.get("macs_reduction")),
                    times(row.get("speedup")),
                    number(row.get("realised")),
                    number(row["psnr"]["mean"], ".1f", " dB") if planned else "",
                    mean(row, "ssim", ".4f"),
                    *changes,
                ]
            )
    return table(head, rows)


def coverage(results: Path) -> str:
    """What is found in each architecture."""
    head = (
        "model",
        "family",
        "guidance",
        "graphs",
        "blocks",
        "branches",
        "hoisted MACs, weights",
        "at 2x",
    )
    rows: list[list[str]] = []
    for row in read(results, "coverage")["rows"]:
        start = [row["name"], row["family"], row["guidance"]]
        if row["not_cached"]:
            rows.append([*start, f"runs uncached: {row['not_cached']}", "", "", "", ""])
            continue
        deep = " + deep part" if row["deep"] else ""
        hoisted = f"{row['hoisted_macs']:.1%}, {row['hoisted_weights']:.0%}"
        parts = [str(row["graphs"]), str(row["blocks"]), f"{row['branches']}{deep}"]
        rows.append([*start, *parts, hoisted, times(row["reduction"])])
    return table(head, rows)


def real_size(results: Path) -> str:
    """One call of each real model, and a plan at 2x."""
    head = (
        "model",
        "size",
        "parameters",
        "MACs a call",
        "of them not latent work",
        "weights read for const, condition, step, latent work",
        "blocks, branches",
        "2x plan: MACs fewer",
        "its slots",
    )
    rows: list[list[str]] = []
    for row in read(results, "real-size")["rows"]:
        macs, weights = row["macs"], row["weight_bytes"]
        total, held = sum(macs.values()), sum(weights.values())
        rows.append(
            [
                row["name"],
                row["size"],
                f"{row['parameters'] / 1e9:.2f} B",
                f"{total / 1e12:.1f} T",
                f"{1 - macs['volatile'] / total:.2%}",
                ", ".join(f"{w / held:.1%}" for w in weights.values()),
                f"{row['regions'].get('block', 0)}, {row['regions'].get('branch', 0)}",
                times(row["reduction"]),
                f"{row['slot_bytes'] / 2**20:.1f} MiB",
            ]
        )
    return table(head, rows)


def overhead(results: Path) -> str:
    """What a skipped step and a first call cost."""
    rows: list[list[str]] = []
    found = read(results, "overhead")
    for row in found["rows"]:
        if row["guards"] in ("shortcut", "all guards"):
            how = "" if row["guards"] == "shortcut" else " with `shortcut=False`"
            what = f"a skipped step of the small Flux{how}, batch {row['batch']}"
            cost = f"{row['skipped_us']['whole']:.0f} µs, {row['share']:.1%} of a computed step"
            rows.append([what, cost])
    for row in found["recording"]:
        what = f"what recording adds to a step of the small Flux, batch {row['batch']}"
        rows.append([what, f"{row['recording_us']:.0f} µs, {row['share']:.1%} of a computed step"])
    planned = max(row["planning_seconds"] for row in found["recording"])
    size = max(row["profile_bytes"] for row in found["recording"])
    calls = found["recording"][0]["steps"]
    rows.append(
        [f"a plan for {calls} steps", f"{planned:.2f} s; its profile {size / 1024:.0f} KiB"]
    )
    runs = read(results, "cold")["runs"]
    for warmed, where in ((False, "a fresh process"), (True, "a process that has compiled before")):
        seconds = {
            way: median(
                run["first_call_seconds"]
                for run in runs
                if run["way"] == way and run["warmed"] == warmed
            )
            for way in ("ditcache", "inductor", "repeated-blocks")
        }
        ours, inductor = seconds["ditcache"], seconds["inductor"]
        regional = seconds["repeated-blocks"]
        rows.append(
            [
                f"first call of a 57-block Flux in {where}",
                f"{ours:.1f} s; plain Inductor {inductor:.1f} s ({inductor / ours:.1f}x), "
                f"`compile_repeated_blocks` {regional:.1f} s",
            ]
        )
    return table(("", ""), rows)
