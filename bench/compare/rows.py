"""From the journal's lines to the table's rows: medians, intervals, ratios to the baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import metrics
from .combine import JOINER, label, parts
from .methods import BASELINE
from .settings import Journal, Settings

QUALITIES = (
    "psnr",
    "ssim",
    "distance",
    "image_sim",
    "temporal_ssim",
    "temporal_distance",
    "motion",
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Times:
    """Seconds of one method by sample; several where the sample was repeated."""

    by_sample: dict[int, list[float]]

    def middle(self) -> dict[int, float]:
        return {sample: float(np.median(values)) for sample, values in self.by_sample.items()}

    def speedup(self, baseline: Times) -> metrics.Spread | None:
        """Ratio of the baseline's seconds to these, sample by sample, with its interval.

        Of one sample alone, the interval is the range of its repeats against the baseline's.
        """
        mine, theirs = self.middle(), baseline.middle()
        both = sorted(mine.keys() & theirs.keys())
        if not both:
            return None
        found = metrics.spread(np.asarray([theirs[i] / mine[i] for i in both]))
        if len(both) > 1:
            return found
        own, base = self.by_sample[both[0]], baseline.by_sample[both[0]]
        return replace(found, low=min(base) / max(own), high=max(base) / min(own))


def make_rows(settings: Settings, journal: Journal, judged: Journal) -> list[Row]:
    """One row a method, in the order asked for; a row that could not run says why."""
    base = _base(journal)
    return [_row(name, journal, judged, base) for name in settings.names]


@dataclass(frozen=True)
class _Base:
    wall: Times
    cpu: Times
    denoise: Times
    macs: float | None
    peak: int | None
    reserved: int | None


def _base(journal: Journal) -> _Base:
    prepared = journal.of("prepared", BASELINE)
    runs = journal.of("run", BASELINE)
    return _Base(
        wall=_times(runs, lambda r: r["seconds"]),
        cpu=_times(runs, lambda r: r["cpu_seconds"]),
        denoise=_times(runs, _denoise),
        macs=prepared[-1]["macs"] if prepared else None,
        peak=max((r["peak_bytes"] for r in runs), default=None),
        reserved=max((r["reserved_bytes"] or 0 for r in runs), default=0) or None,
    )


def _row(name: str, journal: Journal, judged: Journal, base: _Base) -> Row:
    row: Row = {"name": name, "title": label(name), "methods": list(parts(name))}
    failed = journal.of("failed", name)
    prepared = journal.of("prepared", name)
    runs = journal.of("run", name)
    if failed:
        kind = "refused" if failed[-1].get("refused") else "failed"
        return row | {"status": kind, "reason": failed[-1]["reason"]}
    if not prepared or not runs:
        return row | {"status": "missing", "reason": "not run yet"}
    about = prepared[-1]
    finished = journal.of("finished", name)
    row |= {
        "status": "ok",
        "reason": about["quality_only"] or "",
        "quality_only": about["quality_only"] is not None,
        "steps": about["steps"],
        "frames": runs[0]["frames"],
        "notes": list(about["notes"]),
        "seconds_apart": about["seconds"],
        "facts": finished[-1]["facts"] if finished else {},
    }
    if not row["quality_only"]:
        row |= _costs(about, runs, base)
    return row | {"quality": quality(judged, name)}


def _costs(about: dict[str, Any], runs: list[dict[str, Any]], base: _Base) -> Row:
    wall, cpu = _times(runs, lambda r: r["seconds"]), _times(runs, lambda r: r["cpu_seconds"])
    denoise = _times(runs, _denoise)
    repeated = {s: v for s, v in wall.by_sample.items() if len(v) > 1} or wall.by_sample
    per_sample = [float(np.median(v)) for v in wall.by_sample.values()]
    seconds = float(np.median([x for v in repeated.values() for x in v]))
    ranges = [(max(v) - min(v)) / 2 / float(np.median(v)) for v in repeated.values()]
    frames = runs[0]["frames"]
    macs = about["macs"] + about["post_macs"]
    peak = max(r["peak_bytes"] for r in runs)
    reserved = max((r["reserved_bytes"] or 0 for r in runs), default=0) or None
    speedup = wall.speedup(base.wall)
    cpu_speedup = cpu.speedup(base.cpu)
    loop = denoise.speedup(base.denoise)
    watts = [r["watts"] for r in runs if r["watts"] is not None]
    degrees = [r["temperature"] for r in runs if r["temperature"] is not None]
    return {
        "seconds": round(seconds, 4),
        "seconds_spread": round(float(np.median(ranges)), 4),
        "seconds_all_samples": metrics.spread(np.asarray(per_sample)).as_dict(),
        "repeats": max(len(v) for v in wall.by_sample.values()),
        "timed_samples": len(wall.by_sample),
        "seconds_per_frame": round(seconds / frames, 5),
        "frames_per_second": round(frames / seconds, 3),
        "decode_seconds": round(float(np.median([r["decode_seconds"] for r in runs])), 4),
        "post_seconds": round(float(np.median([r["post_seconds"] for r in runs])), 4),
        "cpu_seconds": round(float(np.median([r["cpu_seconds"] for r in runs])), 4),
        "speedup": speedup.as_dict() if speedup else None,
        "loop_speedup": loop.as_dict() if loop else None,
        "cpu_speedup": cpu_speedup.as_dict() if cpu_speedup else None,
        "macs": macs,
        "post_macs": about["post_macs"],
        "macs_reduction": round(base.macs / macs, 4) if base.macs and macs else None,
        "weight_bytes": about["weight_bytes"],
        "peak_bytes": peak,
        "peak_over_baseline": peak - base.peak if base.peak is not None else None,
        "reserved_bytes": reserved,
        "reserved_over_baseline": reserved - base.reserved if reserved and base.reserved else None,
        "watts": round(float(np.mean(watts)), 2) if watts else None,
        "temperature": max(degrees, default=None),
    }


def quality(judged: Journal, name: str) -> Row:
    """Mean with interval of each measure over the samples; which of them collapsed, and how."""
    lines = judged.of("judged", name)
    found: Row = {"samples": len(lines)}
    for measure in QUALITIES:
        values = [line[measure] for line in lines if line[measure] is not None]
        found[measure] = metrics.spread(np.asarray(values)).as_dict() if values else None
    bad: dict[str, int] = {}
    for line in lines:
        if line["collapsed"]:
            bad[line["collapsed"]] = bad.get(line["collapsed"], 0) + 1
    found["collapsed"] = bad
    return found


def matrix(rows: list[Row]) -> list[Row]:
    """Do gains multiply? Measured speedup of each combination against the singles' product."""
    by_name = {row["name"]: row for row in rows}
    found: list[Row] = []
    for row in rows:
        if JOINER not in row["name"]:
            continue
        entry: Row = {"name": row["name"], "status": row["status"], "reason": row["reason"]}
        singles = [by_name.get(part) for part in row["methods"]]
        for measure in ("speedup", "loop_speedup", "cpu_speedup"):
            own = (row.get(measure) or {}).get("median")
            factors = [(s.get(measure) or {}).get("median") if s else None for s in singles]
            known = [f for f in factors if f]
            if own and len(known) == len(factors):
                product = float(np.prod(known))
                entry[measure] = own
                entry[f"{measure}_singles"] = known
                entry[f"{measure}_product"] = round(product, 4)
                entry[f"{measure}_over_product"] = round(own / product, 4)
        found.append(entry)
    return found


def _denoise(run: dict[str, Any]) -> float:
    return max(run["seconds"] - run["decode_seconds"] - run["post_seconds"], 1e-9)


def _times(runs: list[dict[str, Any]], value: Any) -> Times:
    found: dict[int, list[float]] = {}
    for run in runs:
        found.setdefault(run["sample"], []).append(value(run))
    return Times(found)
