"""Tables of `ditcache bench`: contestants at equal MACs."""

from __future__ import annotations

from operator import truediv
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ..walls import best_walls
from .markdown import mean, number, read, times
from .markdown import table as markdown_table

Record = dict[str, Any]

NAMES = {
    "edf": "**edf**",
    "edf-tuned": "**edf**, `ditcache.tune`",
    "fewer-steps": "fewer steps, same solver",
    "fewer-steps-ab2": "fewer steps of AB2",
    "diffusers-taylorseer": "diffusers TaylorSeer",
    "diffusers-seacache": "diffusers SeaCache",
    "diffusers-magcache": "diffusers MagCache",
    "diffusers-fbcache": "diffusers First Block Cache",
    "diffusers-fastercache": "diffusers FasterCache",
    "diffusers-pab": "diffusers PAB",
    "cache-dit-dbcache": "cache-dit DBCache",
    "cache-dit-taylorseer": "cache-dit DBCache + TaylorSeer",
    "deepcache": "DeepCache, in ditcache",
    "deepcache-helper": "DeepCache, its authors' helper",
}
SHORT = {"ditcache": 2, "baseline": 2, "library": 2}
"""How many of each kind a short table shows, the best first."""


def table_of(cells: list[Record], uncached: Record) -> str:
    """Cells of one budget, by PSNR."""
    picture = any("EffLite0-distance" in c["over_samples"] for c in cells)
    sim = "EffLite0-caption-sim" if picture else "class_accuracy"
    real = uncached.get("set", {}).get("frechet:real")
    frechet = cells[0].get("frechet") if real is not None else None
    likeness = any(sim in c["over_samples"] for c in cells)
    head = ["", "MACs fewer", "PSNR, mean (95%)", "median", "worst 5%", "SSIM"]
    head += ["EffLite0-distance"] if picture else []
    head += [f"{frechet} to real"] if frechet else []
    head += [{"class_accuracy": "right class"}.get(sim, "caption sim")] if likeness else []
    rows: list[list[str]] = []
    if uncached.get("set"):
        rows.append(
            ["uncached", "1.00x", "", "", "", ""]
            + ([""] if picture else [])
            + ([number(real, _form(uncached))] if frechet else [])
            + ([mean(uncached.get("over_samples", {}), sim, ".4f")] if likeness else [])
        )
    for cell in cells:
        over, psnr = cell["over_samples"], cell["over_samples"]["psnr"]
        rows.append(
            [
                named(cell["contestant"]) + _stopped(cell, uncached),
                times(cell["macs_reduction"]),
                f"{psnr['mean']:.1f} ({psnr['low']:.1f}–{psnr['high']:.1f})",
                f"{psnr['median']:.1f}",
                f"{psnr['p5']:.1f}",
                mean(over, "ssim", ".4f"),
            ]
            + ([mean(over, "EffLite0-distance", ".4f")] if picture else [])
            + ([number(cell["set"].get("frechet:real"), _form(cell))] if frechet else [])
            + ([mean(over, sim, ".4f")] if likeness else [])
        )
    return markdown_table(head, rows)


def table(results: Path, name: str, budget: str, extent: str = "all") -> str:
    """Contestants at a budget; `short` shows the best two of each kind."""
    found = read(results, f"bench-{name}")
    cells = [c for c in judged(found) if c["budget"] == float(budget)]
    cells.sort(key=lambda c: -c["over_samples"]["psnr"]["mean"])
    if extent == "short":
        left = dict(SHORT)
        shown: list[Record] = []
        for cell in cells:
            if left[cell["kind"]] > 0:
                left[cell["kind"]] -= 1
                shown.append(cell)
        cells = shown
    return table_of(cells, found["uncached"])


def grid(results: Path, name: str) -> str:
    """Mean PSNR and, in brackets, the worst 5%, of all contestants at all budgets."""
    found = judged(read(results, f"bench-{name}"))
    cells = {(c["contestant"], c["budget"]): c["over_samples"]["psnr"] for c in found}
    budgets = sorted({budget for _, budget in cells})
    usual = {b: fmean(c["mean"] for (_, at), c in cells.items() if at == b) for b in budgets}

    def lead(name: str) -> float:
        return fmean(c["mean"] - usual[b] for (n, b), c in cells.items() if n == name)

    order = sorted({n for n, _ in cells}, key=lead, reverse=True)
    rows = [
        [
            named(n),
            *(
                f"{cells[n, b]['mean']:.1f} ({cells[n, b]['p5']:.0f})" if (n, b) in cells else ""
                for b in budgets
            ),
        ]
        for n in order
    ]
    return markdown_table(["", *(f"{b:g}x" for b in budgets)], rows)


def leads(results: Path, name: str) -> str:
    """Paired differences in PSNR between edf and the best of each other kind."""
    found = read(results, f"bench-{name}")["against"]
    rows = [
        [
            f"{r['budget']:g}x",
            named(r["ours"]),
            f"best {'library' if r['kind'] == 'library' else 'other way'}: {named(r['other'])}",
            f"{r['difference']:+.1f} dB ({r['low']:+.1f} to {r['high']:+.1f})".replace("-", "−"),
        ]
        for r in found
        if r["metric"] == "psnr"
    ]
    return markdown_table(["", "", "against", "difference, mean (95%)"], rows)


def walls(results: Path, name: str) -> str:
    """Whole loops timed in turns; each contestant's faster variant, eager or compiled."""
    found = read(results, f"bench-{name}")
    rows: list[list[str]] = []
    for record in found["walls"]:
        budget = record["budget"]
        compiled = record["walls"]["uncached inductor"]
        work = {c["contestant"]: c for c in record["cells"]}
        fastest = sorted(best_walls(record).items(), key=lambda item: -item[1]["speedup"])
        for contestant, wall in fastest:
            cell = work.get(contestant, {})
            low, high = wall["range"]
            rows.append(
                [
                    f"{budget:g}x",
                    named(contestant),
                    wall["variant"],
                    str(cell.get("computed_steps", "all")),
                    times(cell.get("macs_reduction")),
                    f"{times(wall['speedup'])} ({low:.2f}–{high:.2f})",
                    times(median(map(truediv, compiled["seconds"], wall["seconds"]))),
                ]
            )
    head = ["", "", "how", "steps in full", "MACs fewer", "over eager (range)", "over Inductor"]
    return markdown_table(head, rows)


def judged(found: Record) -> list[Record]:
    """Cells that ran and came near their budget."""
    return [
        c
        for c in found["cells"]
        if "over_samples" in c and c["macs_reduction"] >= 0.95 * c["budget"]
    ]


def named(contestant: str) -> str:
    """A contestant's name as it is shown."""
    return NAMES.get(contestant, contestant.replace("-best", ", best schedule"))


def _stopped(cell: Record, uncached: Record) -> str:
    """How many samples a contestant was stopped after, if it was."""
    return f" ({cell['samples']})" if cell["samples"] < uncached["samples"] else ""


def _form(cell: Record) -> str:
    return ".1f" if cell["set"]["frechet:real"] > 10 else ".3f"
