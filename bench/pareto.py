"""Pareto plots: what is saved against what is lost, as PNG and, where plotly is, as HTML."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import matplotlib as mpl

from .features import SPACE
from .ledger import Record
from .policies import TUNED

# Vertical axes: heading, where the figure is in a summarised cell, whether higher is better.
AXES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("PSNR to uncached (dB)", ("over_samples", "psnr", "mean"), True),
    (
        f"perceptual distance ({SPACE}, not LPIPS)",
        ("over_samples", f"{SPACE}-distance", "mean"),
        False,
    ),
    ("Fréchet distance to real", ("set", "frechet:real"), False),
)
STYLES = {"ditcache": ("-", 2.4), "library": ("--", 1.4), "baseline": (":", 1.2)}


def save(document: Record, out: Path) -> list[Path]:
    """Write the plots of a document; gives the files written."""
    curves = _curves(document)
    axes = [a for a in AXES if any(_get(c, a[1]) is not None for c in document["cells"])]
    rows = ["macs_reduction"] + ["speedup"] * any("speedup" in c for c in document["cells"])
    if not curves:
        return []
    written = [out / "pareto.png"]
    _png(document, curves, axes, rows, written[0])
    if importlib.util.find_spec("plotly") is not None:
        written.append(out / "pareto.html")
        _html(document, curves, axes, rows, written[1])
    return written


def _png(document: Record, curves: Any, axes: Any, rows: list[str], path: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(
        len(rows),
        len(axes),
        figsize=(5.2 * len(axes), 4.4 * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for i, across in enumerate(rows):
        for j, (heading, key, _) in enumerate(axes):
            plot = grid[i][j]
            for index, (name, kind, cells) in enumerate(curves):
                points = _points(cells, across, key)
                if not points:
                    continue
                line, width = STYLES[kind]
                colour = {"edf": "0.45", TUNED: "black"}.get(name) or f"C{index % 10}"
                xs, ys = zip(*points, strict=True)
                plot.plot(xs, ys, line, marker="o", ms=4, lw=width, color=colour, label=name)
            plot.set_xlabel(_label(across))
            plot.set_title(heading, fontsize=10)
            plot.grid(alpha=0.3)
            if "Fréchet" in heading:
                plot.axhline(document["uncached"]["set"]["frechet:real"], color="grey", lw=0.8)
            elif "perceptual" in heading:
                plot.set_yscale("log")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _html(document: Record, curves: Any, axes: Any, rows: list[str], path: Path) -> None:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(len(rows), len(axes), subplot_titles=[a[0] for _ in rows for a in axes])
    dashes = {"-": "solid", "--": "dash", ":": "dot"}
    for i, across in enumerate(rows):
        for j, (_, key, _) in enumerate(axes):
            for name, kind, cells in curves:
                points = _points(cells, across, key)
                if not points:
                    continue
                xs, ys = zip(*points, strict=True)
                line, width = STYLES[kind]
                figure.add_trace(
                    go.Scatter(
                        x=xs,
                        y=ys,
                        name=name,
                        legendgroup=name,
                        showlegend=i == j == 0,
                        mode="lines+markers",
                        line={"dash": dashes[line], "width": width},
                        text=[f"{c['knobs']}" for c in cells if _get(c, key) is not None],
                    ),
                    row=i + 1,
                    col=j + 1,
                )
            figure.update_xaxes(title_text=_label(across), row=i + 1, col=j + 1)
            if "perceptual" in axes[j][0]:
                figure.update_yaxes(type="log", row=i + 1, col=j + 1)
    setting = document["setting"]
    samples = document["uncached"]["samples"]
    figure.update_layout(
        title=f"{setting['model']}, {samples} held-out samples", height=480 * len(rows)
    )
    figure.write_html(path, include_plotlyjs="cdn")


def _curves(document: Record) -> list[tuple[str, str, list[Record]]]:
    """Contestants with the cells that have numbers, ours last so that it is drawn on top."""
    found: dict[str, list[Record]] = {}
    for cell in document["cells"]:
        if "macs_reduction" in cell:
            found.setdefault(cell["contestant"], []).append(cell)
    curves = [(name, cells[0]["kind"], cells) for name, cells in found.items()]
    return sorted(curves, key=lambda c: c[1] == "ditcache")


def _points(cells: list[Record], across: str, key: tuple[str, ...]) -> list[tuple[float, float]]:
    points = [(c.get(across), _get(c, key)) for c in cells]
    return sorted((x, y) for x, y in points if x is not None and y is not None)


def _get(cell: Record, key: tuple[str, ...]) -> float | None:
    found: Any = cell
    for part in key:
        if not isinstance(found, dict) or part not in found:
            return None
        found = found[part]
    return found


def _label(across: str) -> str:
    return {"macs_reduction": "MACs reduction (x)", "speedup": "wall speedup (x)"}[across]
