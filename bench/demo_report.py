"""What the demo says in the end: rows, the table, and the summary with its schema."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from .features import SPACE
from .quality import CAPTION, frechet_name
from .timing import Wall

FRECHET = frechet_name(SPACE)


@dataclass(frozen=True)
class Row:
    """One line of the table. Walls are seconds of a whole denoising loop over one batch.

    `macs` are multiply-adds that ran, for one picture; of the uncached row those of the model as it
    is, nothing hoisted. `realised` is speedup over MACs reduction:
    the share of the saved arithmetic that became saved time.
    """

    name: str
    computed_steps: int
    steps: int
    forecaster: str
    macs: float
    macs_reduction: float
    wall_seconds: float
    wall_spread: float
    speedup: float
    speedup_low: float
    speedup_high: float
    speedup_over_inductor: float
    realised: float
    psnr: float | None
    psnr_low: float | None
    psnr_high: float | None
    ssim: float | None
    fd_real: float
    fd_uncached: float
    caption_sim: float
    expected_error: float | None


@dataclass(frozen=True)
class Pace:
    """How long a batch took, and the multiply-adds that ran for one picture."""

    wall: Wall
    macs: float


def make_row(
    name: str,
    *,
    computed: int,
    steps: int,
    forecaster: str,
    pace: Pace,
    baseline: Pace,
    inductor: Wall,
    fidelity: dict[str, Any] | None,
    distribution: dict[str, Any],
    expected_error: float | None,
) -> Row:
    """Put the parts together. `fidelity` is None for the uncached pictures themselves."""
    speedup = pace.wall.speedup(baseline.wall)
    low, high = pace.wall.speedup_range(baseline.wall)
    reduction = baseline.macs / pace.macs
    psnr = fidelity["psnr"] if fidelity else {}
    return Row(
        name=name,
        computed_steps=computed,
        steps=steps,
        forecaster=forecaster,
        macs=pace.macs,
        macs_reduction=round(reduction, 4),
        wall_seconds=round(pace.wall.median, 4),
        wall_spread=round(pace.wall.spread, 4),
        speedup=round(speedup, 4),
        speedup_low=round(low, 4),
        speedup_high=round(high, 4),
        speedup_over_inductor=round(pace.wall.speedup(inductor), 4),
        realised=round(speedup / reduction, 4),
        psnr=psnr.get("mean"),
        psnr_low=psnr.get("low"),
        psnr_high=psnr.get("high"),
        ssim=fidelity["ssim"]["mean"] if fidelity else None,
        fd_real=distribution[f"{FRECHET}:real"],
        fd_uncached=distribution[f"{FRECHET}:uncached"],
        caption_sim=distribution[CAPTION]["mean"],
        expected_error=expected_error,
    )


def make_table(rows: list[Row], title: str) -> Table:
    """Lay the rows out as the one table of the demo."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title_justify = table.caption_justify = "left"
    table.caption = (
        f"FD is {FRECHET} (lower is better), caption sim is {CAPTION} (higher is better); PSNR and "
        "SSIM are to the uncached pictures, PSNR with its 95% interval. Realised is speedup over "
        "MACs reduction. Wall: one batch, median."
    )
    table.add_column("", no_wrap=True)
    for heading in (
        "steps",
        "GMACs\n/image",
        "fewer\nMACs",
        "wall s\n/batch",
        "speed-\nup",
        "vs plain\nInductor",
        "real-\nised",
        "PSNR dB",
        "SSIM",
        "FD\nreal",
        "FD un-\ncached",
        "caption\nsim",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        exact = row.psnr is None
        table.add_row(
            row.name,
            f"{row.computed_steps}/{row.steps}",
            f"{row.macs / 1e9:.2f}",
            f"{row.macs_reduction:.2f}x",
            f"{row.wall_seconds:.2f}",
            "" if exact else f"{row.speedup:.2f}x",
            f"{row.speedup_over_inductor:.2f}x",
            "" if exact else f"{row.realised:.3f}",
            "" if exact else f"{row.psnr:.1f} ±{_half(row):.1f}",
            "" if exact else f"{row.ssim:.4f}",
            f"{row.fd_real:.1f}",
            f"{row.fd_uncached:.2f}",
            f"{row.caption_sim:.3f}",
        )
    return table


def _half(row: Row) -> float:
    """Half of the PSNR's interval."""
    return ((row.psnr_high or 0.0) - (row.psnr_low or 0.0)) / 2


# What `summary.json` promises: names and types, nested. A list holds the type of its items.
SCHEMA: dict[str, Any] = {
    "environment": {
        "hardware": {"processor": str, "cores": int, "threads": int, "memory_gib": float},
        "versions": {"torch": str, "diffusers": str, "ditcache": str, "python": str},
        "commit": str,
        "command": str,
    },
    "settings": {"prompts": int, "seeds": int, "batch": int, "steps": int, "inner": str},
    "rows": [
        {
            "name": str,
            "computed_steps": int,
            "macs": float,
            "macs_reduction": float,
            "wall_seconds": float,
            "speedup": float,
            "realised": float,
            "fd_real": float,
            "fd_uncached": float,
            "caption_sim": float,
        }
    ],
    "reference_walls": {"eager": float, "inductor": float, "uncached again": float},
    "seconds": {"compile": float, "calibration": float, "planning": float, "total": float},
    "captions": [str],
}


def check(document: Any, schema: Any = None, where: str = "summary") -> None:
    """Raise ValueError naming the first place where a document breaks the schema."""
    schema = SCHEMA if schema is None else schema
    if isinstance(schema, dict):
        if not isinstance(document, dict):
            raise ValueError(f"{where}: expected an object")
        for name, inner in schema.items():
            if name not in document:
                raise ValueError(f"{where}.{name} is missing")
            check(document[name], inner, f"{where}.{name}")
    elif isinstance(schema, list):
        if not isinstance(document, list) or not document:
            raise ValueError(f"{where}: expected a list with items")
        for i, item in enumerate(document):
            check(item, schema[0], f"{where}[{i}]")
    elif not isinstance(document, (int, float) if schema is float else schema):
        raise ValueError(f"{where}: expected {schema.__name__}, got {document!r}")


def as_dicts(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows for JSON."""
    return [asdict(row) for row in rows]
