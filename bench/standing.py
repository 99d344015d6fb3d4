"""From cells to what is published: the document, the table, and where ours is behind."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import numpy as np
from rich.table import Table

from . import metrics
from .contest import OTHER_SEEDS, UNCACHED, Contest, cell_name, make
from .environment import environment
from .judging import METRICS, PSNR, TO_UNCACHED, Metric, best, compare, value
from .ledger import Record
from .policies import OURS

RANKED = tuple(m for m in METRICS if m is not TO_UNCACHED)
FAIR = 0.95
"""A cell is ranked at a budget if its MACs reduction on held-out samples is at least this share."""


def document(contest: Contest, contestants: list[str], budgets: list[float]) -> Record:
    """All cells with means, intervals and quantiles, and ours against the best of each kind."""
    cells = _present(contest, contestants, budgets)
    setting = contest.arena.setting
    return {
        "what": "ditcache bench",
        "environment": environment("ditcache.bench"),
        "setting": asdict(setting) | {"guidance": contest.arena.workload.guidance},
        "weights_and_setting": contest.arena.key,
        "macs_uncached": contest.arena.macs_uncached,
        "frechet_noise": contest.noise if contest.noise < float("inf") else None,
        **{
            key: _summarised(contest.cells[name])
            for key, name in (("uncached", UNCACHED), ("other_seeds", OTHER_SEEDS))
            if name in contest.cells
        },
        "notes": _notes(contest, contestants),
        "cells": [_summarised(cell) for cell in cells],
        "against": [row for budget in budgets for row in standings(cells, budget, contest.noise)],
    }


def standings(cells: list[Record], budget: float, noise: float) -> list[Record]:
    """Ours against the best library and the best baseline at a budget, in every metric."""
    at = ranked(cells, budget)
    rows: list[Record] = []
    for mine, metric, kind in itertools.product(
        [c for c in at if c["contestant"] in OURS], RANKED, ("library", "baseline")
    ):
        rival = best([c for c in at if c["kind"] == kind], metric)
        if rival is None or value(mine, metric) is None:
            continue
        if not metric.each and noise == float("inf"):
            continue
        found = compare(mine, rival, metric, noise)
        rows.append(
            {"ours": mine["contestant"], "budget": budget, "metric": metric.key, "kind": kind}
            | {k: v if isinstance(v, str) else round(v, 5) for k, v in asdict(found).items()}
            | {"verdict": found.verdict}
        )
    return rows


def ranked(cells: list[Record], budget: float) -> list[Record]:
    """Cells of a budget that have numbers and kept near the budget."""
    return [
        c for c in cells if c["budget"] == budget and c.get("macs_reduction", 0) >= budget * FAIR
    ]


def table(contest: Contest, contestants: list[str], budgets: list[float]) -> Table:
    """The comparison for a terminal: best of each budget bold, ours marked where it is behind."""
    arena, cells = contest.arena, _present(contest, contestants, budgets)
    shown_metrics = [
        m for m in METRICS if any(value(c, m) is not None for c in cells if "set" in c)
    ]
    setting = arena.setting
    table = Table(
        title=f"{setting.model}: {len(arena.captions)} held-out samples, {setting.steps} steps",
        caption=_legend(contest),
        caption_justify="left",
        box=None,
    )
    table.add_column("", no_wrap=True)
    for heading in ("MACs", "PSNR (95%)", "median", "p5", "worst"):
        table.add_column(heading, justify="right", no_wrap=True)
    for metric in shown_metrics[1:]:
        table.add_column(metric.heading, justify="right", no_wrap=True)
    for name in (UNCACHED, OTHER_SEEDS):
        if name not in contest.cells:
            continue
        cell = contest.cells[name]
        figures = [_text(cell, m) for m in shown_metrics[1:]]
        table.add_row(name, "1.00x", "", "", "", "", *figures, style="dim")
    for budget in budgets:
        table.add_section()
        table.add_row(f"[bold]{budget:g}x[/]")
        for cell in sorted(
            (c for c in cells if c["budget"] == budget and "each" in c),
            key=lambda c: -(value(c, PSNR) or 0),
        ):
            row = _row(cell, cells, shown_metrics, contest.noise, len(arena.captions))
            table.add_row(*row)
    return table


def refusals(contest: Contest, contestants: list[str], budgets: list[float]) -> dict[str, str]:
    """Contestants that do not run this model, with their own words."""
    return {
        cell["contestant"]: " ".join(cell["does_not_apply"].split())
        for cell in _present(contest, contestants, budgets)
        if "does_not_apply" in cell
    }


def _row(
    cell: Record, cells: list[Record], shown: list[Metric], noise: float, samples: int
) -> list[str]:
    name, budget = cell["contestant"], cell["budget"]
    rivals = ranked(cells, budget)
    fair = cell in rivals
    reached = f"{cell['macs_reduction']:.2f}x" + ("" if fair else " [red]short[/]")
    figures: list[str] = []
    for metric in shown:
        text = _text(cell, metric)
        if fair and best(rivals, metric) is cell:
            text = f"[bold]{text}[/]"
        if fair and name in OURS and metric in RANKED and _behind(cell, rivals, metric, noise):
            text += " [red]behind[/]"
        figures.append(text)
    spread = metrics.spread(np.asarray(cell["each"][PSNR.key]))
    figures[0] += f" ({spread.low:.1f}-{spread.high:.1f})"
    quantiles = [f"{q:.1f}" for q in (spread.median, spread.p5, spread.worst)]
    label = f"[bold green]{name}[/]" if name in OURS else name
    if cell["samples"] < samples:
        label += f" ({cell['samples']})"
    return [label, reached, figures[0], *quantiles, *figures[1:]]


def _behind(mine: Record, rivals: list[Record], metric: Metric, noise: float) -> bool:
    leader = best([c for c in rivals if c["contestant"] not in OURS], metric)
    return leader is not None and compare(mine, leader, metric, noise).verdict == "behind"


def _text(cell: Record, metric: Metric) -> str:
    found = value(cell, metric)
    return "" if found is None else f"{found:.{metric.digits}f}"


def _legend(contest: Contest) -> str:
    seeds = (
        f"more than {contest.noise:.2f}, what other seeds alone do"
        if contest.noise < float("inf")
        else "not judged, other seeds are not sampled yet"
    )
    return (
        "bold: best of the budget. behind: ours, where the 95% interval of the paired difference "
        f"to the best other lies below zero (Fréchet distances: {seeds}). short: more MACs than "
        "the budget allows, not ranked. (64): stopped after so many samples, being far behind."
    )


def _notes(contest: Contest, contestants: list[str]) -> dict[str, str]:
    notes = {name: make(name, contest.arena).note for name in contestants}
    return {name: note for name, note in notes.items() if note}


def _present(contest: Contest, contestants: list[str], budgets: list[float]) -> list[Record]:
    wanted = [cell_name(n, b) for b in budgets for n in contestants]
    return [contest.cells[name] for name in wanted if name in contest.cells]


def _summarised(cell: Record) -> Record:
    """The cell with each metric's spread in place of its samples."""
    if "each" not in cell:
        return cell
    spreads = {k: metrics.spread(np.asarray(v)).as_dict() for k, v in cell["each"].items()}
    return {k: v for k, v in cell.items() if k != "each"} | {"over_samples": spreads}
