"""Rows, table and film sheet of the video study."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ditcache import Plan
from ditcache.models.train.video_grid import film_strips
from PIL import Image
from rich import box
from rich.table import Table
from torch import Tensor

from . import metrics
from .temporal import DISTANCE, PERCEPTUAL, Temporal, perceptual, temporal
from .timing import Wall

Records = dict[str, list[dict[str, float]]]


def make_rows(
    clips: dict[str, Tensor], records: Records, plans: dict[str, Plan], steps: int
) -> list[dict[str, Any]]:
    """One row a variant: uncached first, then the plans, then other seeds (not timed).

    `clips` are [N, T, 3, H, W] in [0, 1]; `records` hold each batch's seconds and MACs.
    """
    reference = clips["uncached"]
    base = temporal(reference)
    rows: list[dict[str, Any]] = []
    for name, made in clips.items():
        plan = plans.get(name)
        row: dict[str, Any] = {
            "name": name,
            "computed_steps": plan.computed_steps if plan else steps,
            "steps": steps,
        }
        if name in records:
            row |= _pace(records[name], records["uncached"], records["inductor"])
        if plan:
            row |= {"forecaster": plan.regions[0].forecaster, "solver": plan.solver}
            row["expected_error"] = plan.expected_error
            flat, wanted = made.flatten(0, 1), reference.flatten(0, 1)
            row["psnr"] = metrics.spread(metrics.psnr(flat, wanted)).as_dict()
            row[PERCEPTUAL] = metrics.spread(perceptual(made, reference)).as_dict()
            row["ssim"] = metrics.spread(metrics.ssim(flat, wanted)).as_dict()
        row["temporal"] = _temporal(base if name == "uncached" else temporal(made), base)
        rows.append(row)
    return rows


def _pace(
    mine: list[dict[str, float]], base: list[dict[str, float]], inductor: list[dict[str, float]]
) -> dict[str, Any]:
    walls = {
        key: [Wall(tuple(r[key] for r in each)) for each in (mine, base, inductor)]
        for key in ("seconds", "cpu_seconds")
    }
    wall, base_wall, plain_wall = walls["seconds"]
    cpu, base_cpu, _ = walls["cpu_seconds"]
    reduction = base[0]["macs"] / mine[0]["macs"]
    speedup, cpu_speedup = wall.speedup(base_wall), cpu.speedup(base_cpu)
    low, high = wall.speedup_range(base_wall)
    return {
        "macs": mine[0]["macs"],
        "macs_reduction": round(reduction, 4),
        "wall_seconds": round(wall.median, 4),
        "wall_spread": round(wall.spread, 4),
        "speedup": round(speedup, 4),
        "speedup_low": round(low, 4),
        "speedup_high": round(high, 4),
        "speedup_over_inductor": round(wall.speedup(plain_wall), 4),
        "realised": round(speedup / reduction, 4),
        "cpu_seconds": round(cpu.median, 4),
        "cpu_speedup": round(cpu_speedup, 4),
        "cpu_realised": round(cpu_speedup / reduction, 4),
    }


def _temporal(mine: Temporal, base: Temporal) -> dict[str, Any]:
    """Each measure's mean, and its change relative to uncached with a paired interval."""
    named = {"ssim": "ssim", "distance": DISTANCE, "motion": "motion"}
    found: dict[str, Any] = {}
    for attribute, name in named.items():
        values, wanted = getattr(mine, attribute), getattr(base, attribute)
        pairs = np.stack([values, wanted], axis=1)
        low, high = metrics.bootstrap(pairs, _relative_change, 2000, 0)
        found[name] = {
            "mean": round(float(values.mean()), 5),
            "change": round(float(values.mean() / wanted.mean() - 1), 5),
            "change_low": round(low, 5),
            "change_high": round(high, 5),
        }
    return found


def _relative_change(drawn: metrics.Array) -> metrics.Array:
    """[resamples, N, 2] pairs (mine, base) -> relative change of the means."""
    means = drawn.mean(axis=1)
    return means[:, 0] / means[:, 1] - 1


def make_table(rows: list[dict[str, Any]], title: str) -> Table:
    """Lay the rows out as one table."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title_justify = table.caption_justify = "left"
    table.caption = (
        "PSNR and SSIM: frames, to the uncached ones. Neighbour columns: means over neighbouring "
        f"frames, and their change to uncached; distance is {DISTANCE}. Realised is speedup over "
        "MACs reduction."
    )
    headings = (
        "",
        "steps",
        "GMACs\n/clip",
        "fewer\nMACs",
        "wall s\n/batch",
        "speed-\nup",
        "real-\nised",
        "PSNR dB",
        "SSIM",
        "neighbour\nSSIM",
        "neighbour\ndistance",
        "motion",
    )
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        timed, cached = "macs" in row, "psnr" in row
        moves = row["temporal"]
        table.add_row(
            row["name"],
            f"{row['computed_steps']}/{row['steps']}",
            f"{row['macs'] / 1e9:.2f}" if timed else "",
            f"{row['macs_reduction']:.2f}x" if timed else "",
            f"{row['wall_seconds']:.2f}" if timed else "",
            f"{row['speedup']:.2f}x" if cached else "",
            f"{row['realised']:.3f}" if cached else "",
            f"{row['psnr']['mean']:.1f}" if cached else "",
            f"{row['ssim']['mean']:.4f}" if cached else "",
            *(
                f"{moves[name]['mean']:.4f} {100 * moves[name]['change']:+.1f}%"
                for name in ("ssim", DISTANCE, "motion")
            ),
        )
    return table


def film_sheet(clips: dict[str, Tensor], captions: list[str]) -> Image.Image:
    """Film strips of every variant under each other, caption by caption."""
    names = list(clips)
    count = len(captions)
    ordered = torch.stack([clips[name][i] for i in range(count) for name in names])
    labels = [f"{captions[i]}: {name}" for i in range(count) for name in names]
    # Two columns: all variants of one caption stay below each other.
    half = len(names) * -(-count // 2)
    left, right = (
        film_strips(part, text, columns=1)
        for part, text in ((ordered[:half], labels[:half]), (ordered[half:], labels[half:]))
    )
    sheet = Image.new("RGB", (left.width + right.width, left.height), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width, 0))
    return sheet
