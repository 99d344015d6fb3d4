"""The part of the page for a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .charts import FAMILIES, Bar, Point, bars, scatter, strip
from .parts import details, figure, viewer, where
from .sources import Source

Row = dict[str, Any]
COLUMNS = (
    ("steps", "steps", "d", "denoising steps"),
    ("seconds", "s", ".2f", "seconds of one generation, decoding and post-processing included"),
    ("seconds_spread", "± %", "%", "half the range over repeats"),
    ("speedup", "speedup", "x", "the baseline's seconds over these, median over inputs"),
    ("macs_reduction", "fewer MACs", "x", "denoiser and interpolation network"),
    ("peak_bytes", "peak MiB", "MiB", "peak memory during a generation"),
    ("peak_over_baseline", "Δ MiB", "MiB", "against the baseline"),
)
MORE_COLUMNS = (
    ("seconds_per_frame", "s/frame", ".3f", ""),
    ("frames_per_second", "frames/s", ".2f", ""),
    ("decode_seconds", "decoding s", ".3f", "of a generation, the autoencoder"),
    ("post_seconds", "post s", ".3f", "of a generation, post-processing"),
    ("loop_speedup", "loop", "x", "speedup without decoding and post-processing"),
    ("cpu_speedup", "CPU", "x", "ratio of processor seconds"),
    ("macs", "GMACs", "G", "multiply-adds of denoiser and interpolation network"),
    ("weight_bytes", "weights MiB", "MiB", "of the denoiser, as stored"),
    ("reserved_bytes", "reserved MiB", "MiB", "what the CUDA allocator held"),
    ("reserved_over_baseline", "Δ reserved MiB", "MiB", "against the baseline"),
    ("temperature", "°C", ".0f", "the GPU's highest"),
    ("watts", "W", ".0f", "the GPU's mean"),
)
QUALITIES = (
    ("psnr", "PSNR", ".1f"),
    ("ssim", "SSIM", ".3f"),
    ("distance", "{distance}", ".4f"),
    ("image_sim", "{image_sim}", ".3f"),
    ("temporal_ssim", "t-SSIM", ".3f"),
    ("temporal_distance", "t-distance", ".4f"),
    ("motion", "motion", ".4f"),
)


def compare(source: Source) -> str:
    """Everything of one comparison."""
    document = source.document
    rows: list[Row] = document["rows"]
    ran = [row for row in rows if row["status"] == "ok"]
    timed = [row for row in ran if not row["quality_only"] and row["speedup"]]
    names = document["measures"]
    return "".join(
        [
            f"<section><h2>{escape(document['title'])}</h2>",
            where(document),
            _unjudged(document),
            _recommendations(document),
            "<h3>Speed against quality</h3>",
            scatter(_points(timed, "ssim"), "speedup", "SSIM to the baseline", log_x=True),
            _family_key(),
            details(
                "With other measures of quality",
                scatter(_points(timed, "distance"), "speedup", str(names["distance"]), log_x=True)
                + scatter(_points(timed, "temporal_ssim"), "speedup", "temporal SSIM", log_x=True),
            ),
            "<h3>All rows</h3>",
            _table(rows, names),
            _more(timed),
            _sensor(document),
            "<h3>Frames</h3>",
            viewer(source, document["clips"]),
            figure(source, "frames.png"),
            f"<h3>Peak memory ({escape(str(names['memory']))})</h3>",
            bars(_memory(timed), "peak memory"),
            "<h3>Which steps a plan computes</h3>",
            _strips(ran),
            "<h3>Do gains multiply?</h3>",
            _matrix(document),
            _apart(timed),
            "</section>",
        ]
    )


def _unjudged(document: dict[str, Any]) -> str:
    """Say why the quality columns are empty, where they are."""
    why = document.get("unjudged")
    return f"<p><b>Quality columns are empty: {escape(why)}.</b></p>" if why else ""


def family(name: str) -> str:
    """Colour group of a method's name."""
    if name.startswith("M0"):
        return "baseline"
    if "+" in name:
        return "combination"
    return "ditcache" if name.startswith(("C", "exact")) else "single"


def _points(rows: list[Row], measure: str) -> list[Point]:
    found: list[Point] = []
    for row in rows:
        quality, pace = row["quality"].get(measure), row["speedup"]
        if quality is None:
            continue
        found.append(
            Point(
                row["name"],
                pace["median"],
                quality["mean"],
                pace["low"],
                pace["high"],
                quality["low"],
                quality["high"],
                family(row["name"]),
            )
        )
    return found


def _memory(rows: list[Row]) -> list[Bar]:
    return [
        Bar(
            row["name"],
            row["peak_bytes"] / 2**20,
            f"{row['peak_bytes'] / 2**20:.0f} ({row['peak_over_baseline'] / 2**20:+.0f}) MiB",
            family(row["name"]),
        )
        for row in rows
    ]


def _table(rows: list[Row], names: dict[str, str]) -> str:
    heads = _heads(COLUMNS)
    heads += "".join(f"<th>{escape(head.format(**names))}</th>" for _, head, _ in QUALITIES)
    body = ""
    width = len(COLUMNS) + len(QUALITIES)
    for row in rows:
        label = f"<th>{escape(row['name'])}<small>{escape(row['title'])}</small></th>"
        if row["status"] != "ok":
            said = f"{row['status']}: {row['reason']}"
            body += f'<tr class="no">{label}<td colspan="{width}">{escape(said)}</td></tr>'
            continue
        quality = row["quality"]
        if row["quality_only"]:
            cells = f'<td class="why" colspan="{len(COLUMNS)}">{escape(row["reason"])}</td>'
        else:
            cells = _costs(row, COLUMNS)
        cells += "".join(f"<td>{_mean(quality.get(key), form)}</td>" for key, _, form in QUALITIES)
        bad = ", ".join(f"{n} of {quality['samples']} {w}" for w, n in quality["collapsed"].items())
        if bad:
            label = label.replace("<small>", f"<b>{escape(bad)}</b><small>")
        notes = escape("; ".join(row["notes"]))
        body += f'<tr title="{notes}"{" class=bad" if bad else ""}>{label}{cells}</tr>'
    return f'<div class="wide"><table><tr><th>method</th>{heads}</tr>{body}</table></div>'


def _more(rows: list[Row]) -> str:
    """All else that a generation cost; columns that no row has are left out."""
    known = [c for c in MORE_COLUMNS if any(row.get(c[0]) is not None for row in rows)]
    body = "".join(f"<tr><th>{escape(r['name'])}</th>{_costs(r, known)}</tr>" for r in rows)
    table = f'<div class="wide"><table><tr><th></th>{_heads(known)}</tr>{body}</table></div>'
    return details("More of what it costs", table)


def _heads(columns: Sequence[tuple[str, str, str, str]]) -> str:
    return "".join(f'<th title="{escape(tip)}">{head}</th>' for _, head, _, tip in columns)


def _costs(row: Row, columns: Sequence[tuple[str, str, str, str]]) -> str:
    return "".join(f"<td>{_cost(row, key, form)}</td>" for key, _, form, _ in columns)


def _sensor(document: dict[str, Any]) -> str:
    why = document.get("gpu_sensor")
    return f"<p>No temperature or power of a GPU: {escape(str(why))}.</p>" if why else ""


def _cost(row: Row, key: str, form: str) -> str:
    value = row.get(key)
    if isinstance(value, dict):
        ends = "" if value["low"] == value["high"] else f"{value['low']:.2f} to {value['high']:.2f}"
        return f"{value['median']:.2f}x<small>{ends}</small>"
    if value is None:
        return ""
    if form == "G":
        return f"{value / 1e9:.3g}"
    if form == "MiB":
        return f"{value / 2**20:.0f}"
    if form == "%":
        return f"{100 * value:.0f}"
    return f"{value:.2f}x" if form == "x" else f"{value:{form}}"


def _mean(value: dict[str, float] | None, form: str) -> str:
    if value is None:
        return ""
    low, high = value["low"], value["high"]
    return f"{value['mean']:{form}}<small>{low:{form}} to {high:{form}}</small>"


def _recommendations(document: dict[str, Any]) -> str:
    items = ""
    for one in document["recommendations"]:
        if one["name"] is None:
            items += f"<li><b>{escape(one['goal'])}</b>: none. Rule: {escape(one['rule'])}</li>"
            continue
        price = f"SSIM {one['ssim']:.3f}, PSNR {one['psnr']:.1f} dB to the baseline"
        if one["image_sim_change"] is not None:
            price += f", likeness to the input {one['image_sim_change']:+.4f}"
        items += (
            f"<li><b>{escape(one['goal'])}</b>: {escape(one['name'])}, {one['speedup']:.2f}x, "
            f"{one['peak_bytes'] / 2**20:.0f} MiB. Price: {price}."
            f"<small>Rule: {escape(one['rule'])}</small></li>"
        )
    best = [row for row in document["against_singles"] if row["undominated"]]
    if best:
        said = escape("; ".join(map(_against, best)))
        items += f"<li>Faster than every single method of no less quality: {said}</li>"
    elif document["against_singles"]:
        items += "<li>No combination is faster than every single method of no less quality.</li>"
    return f"<h3>What to take</h3><ul>{items}</ul>"


def _against(row: Row) -> str:
    text = f"{row['name']} at {row['speedup']:.2f}x"
    if row["fastest_as_good"] is None:
        return text
    return f"{text} against {row['fastest_as_good']} at {row['its_speedup']:.2f}x"


def _matrix(document: dict[str, Any]) -> str:
    body, name_of = "", document["measures"]["distance"]
    rows = {row["name"]: row for row in document["rows"]}
    for one in document["combinations"]:
        name = escape(one["name"])
        if one["status"] != "ok" or "speedup" not in one:
            why = escape(f"{one['status']}: {one['reason']}" if one["reason"] else one["status"])
            body += f'<tr class="no"><th>{name}</th><td colspan="6">{why}</td></tr>'
            continue
        factors = " · ".join(f"{f:.2f}" for f in one["speedup_singles"])
        body += (
            f"<tr><th>{name}</th><td>{one['speedup']:.2f}x</td><td>{factors}</td>"
            f"<td>{one['speedup_product']:.2f}x</td><td>{one['speedup_over_product']:.0%}</td>"
            + "".join(
                f"<td>{_mean(rows[one['name']]['quality'].get(key), form)}</td>"
                for key, form in (("ssim", ".3f"), ("distance", ".4f"))
            )
            + "</tr>"
        )
    return (
        '<div class="wide"><table><tr><th></th><th>measured</th><th>singles</th><th>product</th>'
        f"<th>measured / product</th><th>SSIM</th><th>{escape(name_of)}</th></tr>"
        f"{body}</table></div>"
    )


def _strips(rows: list[Row]) -> str:
    parts = [
        f"<p>{escape(row['name'])}: {len(row['facts']['plan'])} of {row['facts']['steps']} steps, "
        f"{escape(str(row['facts']['forecaster']))}</p>"
        + strip(row["facts"]["plan"], row["facts"]["steps"])
        for row in rows
        if row["facts"].get("plan")
    ]
    return "".join(parts) or "<p>No row has a plan.</p>"


def _apart(rows: list[Row]) -> str:
    names = list(dict.fromkeys(n for row in rows for n in row["seconds_apart"]))
    head = "".join(f"<th>{escape(n)}</th>" for n in names)
    body = ""
    for row in rows:
        cells = "".join(
            f"<td>{row['seconds_apart'][n]:.1f}</td>" if n in row["seconds_apart"] else "<td></td>"
            for n in names
        )
        body += f"<tr><th>{escape(row['name'])}</th>{cells}</tr>"
    table = f'<div class="wide"><table><tr><th></th>{head}</tr>{body}</table></div>'
    return details("Seconds before the first measured generation", table)


def _family_key() -> str:
    shown = (name for name in FAMILIES if name != "other")
    return (
        '<p class="key">'
        + " ".join(f'<span style="--c:{FAMILIES[name]}">{name}</span>' for name in shown)
        + "</p>"
    )
