"""Which measured method to take, by stated rules, and what it costs in quality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .combine import JOINER
from .methods import BASELINE

Row = dict[str, Any]
LOW_MEMORY = "low memory"
BALANCED_SSIM, LOW_MEMORY_SSIM, FASTEST_SSIM = 0.95, 0.90, 0.70


@dataclass(frozen=True)
class Recommendation:
    """`name` is None where no method met the rule."""

    goal: str
    rule: str
    name: str | None
    speedup: float | None = None
    peak_bytes: int | None = None
    ssim: float | None = None
    psnr: float | None = None
    distance: float | None = None
    image_sim_change: float | None = None


def recommend(rows: list[Row]) -> list[Recommendation]:
    """Lowest latency, balanced, low memory."""
    usable = [row for row in rows if eligible(row)]
    base = next((row for row in rows if row["name"] == BASELINE), None)
    rules = (
        (
            "lowest latency",
            f"fastest with mean SSIM to the baseline of at least {FASTEST_SSIM}",
            FASTEST_SSIM,
            lambda row: -row["speedup"]["median"],
        ),
        (
            "balanced",
            f"fastest with mean SSIM to the baseline of at least {BALANCED_SSIM}",
            BALANCED_SSIM,
            lambda row: -row["speedup"]["median"],
        ),
        (
            LOW_MEMORY,
            "smallest peak memory, below the baseline's, with mean SSIM of at least "
            f"{LOW_MEMORY_SSIM}, and not slower than the baseline",
            LOW_MEMORY_SSIM,
            lambda row: row["peak_bytes"],
        ),
    )
    found: list[Recommendation] = []
    for goal, rule, ssim, order in rules:
        fit = [r for r in usable if r["quality"]["ssim"]["mean"] >= ssim]
        fit = [r for r in fit if r["speedup"]["median"] >= 1]
        if goal == LOW_MEMORY:
            fit = [r for r in fit if (r["peak_over_baseline"] or 0) < 0]
        text = f"{rule}; no sample collapsed"
        if not fit:
            found.append(Recommendation(goal, text, None))
            continue
        found.append(_named(goal, text, min(fit, key=order), base))
    return found


def eligible(row: Row) -> bool:
    """Whether it ran, was timed, was judged, is not the baseline, and no sample collapsed."""
    return (
        row["status"] == "ok"
        and not row["quality_only"]
        and not row["name"].startswith(BASELINE)
        and row["speedup"] is not None
        and row["quality"]["ssim"] is not None
        and not row["quality"]["collapsed"]
    )


def undominated(rows: list[Row], measure: str = "distance") -> list[Row]:
    """Combinations faster than every single method of equal or better quality, with the evidence.

    Quality is the mean of `measure` (perceptual distance to the baseline, lower is better).
    `beats` names the single methods that the combination is both faster and not worse than;
    `fastest_as_good` the fastest single method that is not worse, which it must outrun.
    """
    usable = [row for row in rows if eligible(row) and row["quality"][measure] is not None]
    singles = [row for row in usable if JOINER not in row["name"]]
    found: list[Row] = []
    for row in usable:
        if JOINER not in row["name"]:
            continue
        loss, pace = row["quality"][measure]["mean"], row["speedup"]["median"]
        as_good = [s for s in singles if s["quality"][measure]["mean"] <= loss]
        rival = max(as_good, key=lambda s: s["speedup"]["median"], default=None)
        found.append(
            {
                "name": row["name"],
                "speedup": pace,
                "loss": loss,
                "undominated": rival is None or rival["speedup"]["median"] < pace,
                "fastest_as_good": rival["name"] if rival else None,
                "its_speedup": rival["speedup"]["median"] if rival else None,
                "beats": [
                    s["name"]
                    for s in singles
                    if s["speedup"]["median"] < pace and s["quality"][measure]["mean"] >= loss
                ],
            }
        )
    return found


def _named(goal: str, rule: str, row: Row, base: Row | None) -> Recommendation:
    quality = row["quality"]
    change = None
    if base and base.get("quality") and quality["image_sim"] and base["quality"]["image_sim"]:
        change = round(quality["image_sim"]["mean"] - base["quality"]["image_sim"]["mean"], 4)
    return Recommendation(
        goal=goal,
        rule=rule,
        name=row["name"],
        speedup=row["speedup"]["median"],
        peak_bytes=row["peak_bytes"],
        ssim=quality["ssim"]["mean"],
        psnr=quality["psnr"]["mean"],
        distance=quality["distance"]["mean"] if quality["distance"] else None,
        image_sim_change=change,
    )
