"""Methods side by side at equal computed steps, on both trained models.

`python -m bench.paired` writes `paired-<model>.json`: PSNR and SSIM to the uncached 50-step
samples, Fréchet distance to the real set and to uncached sets, likeness to the caption (Flux) or
class accuracy (DiT), for every method and budget, on held-out prompts and seeds. It goes on where
it stopped: finished cells are kept, one JSON line each, under `out/paired`.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import exact, metrics
from .digit_judge import real_accuracy
from .environment import environment, write_json
from .paired_study import BUDGETS, FEWER, METHODS, UNCACHED, Setting, Study
from .quality import CAPTION, frechet_name
from .workload import EVALUATION_SEED, WORKLOADS


def run(setting: Setting, work: Path, out: Path, console: Console) -> dict[str, Any]:
    """Run one model's comparison and write its document."""
    total = len(setting.methods) * len(setting.budgets) + 3
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(setting.model, total=total)
        study = Study(
            setting, work / f"{setting.model}.jsonl", lambda: progress.update(task, advance=1)
        )
        study.run()
        batches = study.workload.batches(
            2 * min(8, setting.batch), min(8, setting.batch), seed=EVALUATION_SEED
        )
        tiers = [
            exact.measure(study.workload, batches, steps=setting.steps, inner=inner)
            for inner in setting.exact
        ]
        progress.update(task, advance=1)
    wanted = [f"{m} {b:g}x" for b in setting.budgets for m in setting.methods]
    names = [UNCACHED, f"{UNCACHED} other seeds", *wanted]
    cells = [study.cells[name] for name in names]
    document: dict[str, Any] = {
        "environment": environment("bench.paired"),
        "setting": asdict(setting) | {"guidance": study.workload.guidance},
        "weights_and_setting": study.key,
        "exact": tiers,
        "against_best": against_best(study.cells, setting),
        "cells": [{k: v for k, v in cell.items() if k != "psnr_each"} for cell in cells],
    }
    if setting.model == "dit-digits":
        document["classifier_accuracy_on_real"] = round(real_accuracy(), 4)
    write_json(out / f"paired-{setting.model}.json", document)
    console.print(table(document, study.workload.space))
    for row in document["against_best"]:
        console.print(
            f"{row['budget']:g}x: edf {row['difference']:+.2f} dB "
            f"({row['low']:+.2f} to {row['high']:+.2f}) against {row['best_other']}"
        )
    return document


def against_best(cells: dict[str, dict[str, Any]], setting: Setting) -> list[dict[str, Any]]:
    """EDF minus the best other method at each budget: mean difference per sample, 95% interval."""
    rows: list[dict[str, Any]] = []
    if "edf" not in setting.methods:
        return rows
    for budget in setting.budgets:
        others = [cells[f"{m} {budget:g}x"] for m in setting.methods if m != "edf"]
        if not others:
            continue
        best = max(others, key=lambda cell: cell["psnr"]["mean"])
        mine = np.asarray(cells[f"edf {budget:g}x"]["psnr_each"])
        found = metrics.spread(mine - np.asarray(best["psnr_each"]))
        rows.append(
            {
                "budget": budget,
                "best_other": best["method"],
                "difference": round(found.mean, 3),
                "low": round(found.low, 3),
                "high": round(found.high, 3),
                "share_better": round(float((mine > np.asarray(best["psnr_each"])).mean()), 3),
            }
        )
    return rows


def table(document: dict[str, Any], space: str) -> Table:
    """Lay the cells out for a terminal."""
    name = frechet_name(space)
    setting = document["setting"]
    digits = setting["model"] == "dit-digits"
    shown = Table(title=f"{setting['model']}, {setting['n']} held-out samples", box=None)
    quality = "class acc." if digits else CAPTION
    for heading in (
        "method",
        "computed",
        "PSNR mean (95%)",
        "median",
        "p5",
        "worst",
        "SSIM",
        f"{name} real",
        "to uncached",
        "other seeds",
        quality,
    ):
        shown.add_column(heading, no_wrap=True, justify="left" if heading == "method" else "right")
    for cell in document["cells"]:
        psnr = cell.get("psnr")
        texts = [cell["name"], str(cell.get("computed_steps", setting["steps"]))]
        if psnr is None:
            texts += ["", "", "", "", ""]
        else:
            texts.append(f"{psnr['mean']:.2f} ({psnr['low']:.2f}-{psnr['high']:.2f})")
            texts += [f"{psnr[k]:.2f}" for k in ("median", "p5", "worst")]
            texts.append(f"{cell['ssim']['mean']:.4f}")
        for other in ("real", UNCACHED, "other_seeds"):
            value = cell.get(f"{name}:{other}")
            texts.append("" if value is None else f"{value:.2f}")
        texts.append(f"{cell['class_accuracy' if digits else CAPTION]['mean']:.3f}")
        shown.add_row(*texts)
    return shown


def main() -> None:
    """Parse options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--n", type=int, default=128, help="held-out samples")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--calibration", type=int, default=16, help="calibration samples")
    parser.add_argument("--inner", default="eager", help="compiler of the parts")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--quick", action="store_true", help="a few samples and steps, no use")
    parser.add_argument("--work", type=Path, default=Path("out/paired"), help="resumable state")
    parser.add_argument("--out", type=Path, default=Path("out/paired"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", category=UserWarning)
    console = Console(width=max(Console().width, 150))
    for model in WORKLOADS if args.model == "all" else [args.model]:
        setting = Setting(
            model=model,
            n=4 if args.quick else args.n,
            batch=2 if args.quick else args.batch,
            calibration=2 if args.quick else args.calibration,
            steps=8 if args.quick else 50,
            inner=args.inner,
            exact=("eager",) if args.quick else ("eager", "inductor"),
            methods=("edf", "reuse", FEWER) if args.quick else tuple(args.methods),
            budgets=(2.0,) if args.quick else tuple(args.budgets),
        )
        run(setting, args.work, args.out, console)


if __name__ == "__main__":
    main()
