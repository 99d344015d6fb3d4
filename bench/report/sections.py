"""The other parts of the page: evaluations, results of bench, votes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .charts import Point, scatter, strip
from .parts import viewer, where
from .sources import Source
from .votes import WinRate


def evaluate(source: Source) -> str:
    """Everything of one evaluation."""
    document = source.document
    measures = list(dict.fromkeys(m for e in document["variants"].values() for m in e))
    head = "".join(f"<th>{escape(m)}</th>" for m in ["", *measures, "s/sample"])
    body = ""
    for name, entry in document["variants"].items():
        cells = "".join(f"<td>{_measure(entry.get(m))}</td>" for m in measures)
        seconds = document["seconds_a_sample"][name]
        body += f"<tr><th>{escape(name)}</th>{cells}<td>{seconds:.2f}</td></tr>"
    strips = [
        f"<p>{escape(name)}{_fewer(plan)}</p>{strip(plan['computed'], plan['steps'])}"
        for name, plan in document["plans"].items()
    ]
    missing = "".join(
        f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in document["missing"].items()
    )
    reference = document["reference"]
    against = (
        f"Reference: {escape(str(reference['name']))}, {reference['pictures']} pictures. "
        if reference["name"]
        else ""
    )
    return (
        f"<section><h2>{escape(document['title'])}</h2>{where(document)}"
        f"<p>{against}Fréchet distances are biased by the number of samples: compare only those of "
        "equal numbers. Intervals are 95%, bootstrapped over samples.</p>"
        f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
        f"<h3>Samples</h3>{viewer(source, document['clips'])}"
        f"<h3>Which steps a plan computes</h3>{''.join(strips) or '<p>No plan.</p>'}"
        f"<h3>Not measured</h3><ul>{missing or '<li>nothing was left out</li>'}</ul></section>"
    )


def _fewer(plan: dict[str, Any]) -> str:
    return f": {plan['macs_reduction']:.2f}x fewer MACs" if "macs_reduction" in plan else ""


def bench(source: Source) -> str:
    """A result of `ditcache bench`: quality at equal work, and where ours is not ahead."""
    document = source.document
    cells = [c for c in document["cells"] if "psnr" in c.get("over_samples", {})]
    cells.sort(key=lambda c: (c["budget"], -c["over_samples"]["psnr"]["mean"]))
    points = [_bench_point(c) for c in cells]
    figures = list(dict.fromkeys(m for c in cells for m in c["over_samples"]))
    distance = f"{cells[0]['frechet']} to real" if cells else ""
    columns = ["", "whose", "MACs reduction", *figures, distance]
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join(
        f"<tr><th>{escape(c['name'])}</th><td>{escape(c['kind'])}</td>"
        f"<td>{c['macs_reduction']:.2f}</td>"
        + "".join(f"<td>{_measure(c['over_samples'].get(m))}</td>" for m in figures)
        + f"<td>{_measure(c['set'].get('frechet:real'))}</td></tr>"
        for c in cells
    )
    left_out = "".join(
        f"<li>{escape(c['contestant'])} at {c['budget']:g}x: {escape(c['does_not_apply'])}</li>"
        for c in document["cells"]
        if "does_not_apply" in c
    )
    setting = document["setting"]
    return (
        f"<section><h2>{escape(setting['model'])}: methods at equal MACs</h2>{where(document)}"
        f"<p>{document['uncached']['samples']} held-out samples, {setting['steps']} steps; each "
        "method tuned on calibration samples, MACs counted from outside. Intervals are 95%, "
        "bootstrapped over samples.</p>"
        + scatter(points, "MACs reduction", "PSNR (dB) to uncached", log_x=True)
        + f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
        + (f"<h3>Does not apply</h3><ul>{left_out}</ul>" if left_out else "")
        + "</section>"
    )


def _bench_point(cell: dict[str, Any]) -> Point:
    psnr, saved = cell["over_samples"]["psnr"], float(cell["macs_reduction"])
    family = {"ditcache": "ditcache", "baseline": "baseline"}.get(cell["kind"], "single")
    low, high = psnr["low"], psnr["high"]
    return Point(cell["contestant"], saved, psnr["mean"], saved, saved, low, high, family)


def votes(rates: Sequence[WinRate], count: int) -> str:
    """What people saw: win rates with Wilson's interval."""
    if not rates:
        return ""
    points = "".join(
        f"<tr><th>{escape(r.name)}</th><td>{r.rate:.0%}</td><td>{r.low:.0%} to {r.high:.0%}</td>"
        f"<td>{r.wins}</td><td>{r.losses}</td><td>{r.ties}</td></tr>"
        for r in rates
    )
    return (
        f"<section><h2>Blind votes</h2><p>{count} votes. A tie counts half to each side; intervals "
        "are Wilson's, 95%, over all pairs that a method was in.</p>"
        '<div class="wide"><table><tr><th></th><th>win rate</th><th>95%</th><th>won</th>'
        f"<th>lost</th><th>tied</th></tr>{points}</table></div></section>"
    )


def _measure(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['mean']:.4f}<small>{value['low']:.4f} to {value['high']:.4f}</small>"
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else escape(str(value))
