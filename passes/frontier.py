"""The frontier: what every budget costs in predicted error, as rows, as a table and as a plot."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from .budget import FEWEST
from .clipped_run import ClippedRun
from .error_diffusion import Array
from .portfolio import solve


@dataclass(frozen=True)
class FrontierRow:
    """What one budget buys."""

    computed_steps: int
    macs_reduction: float
    expected_error: float
    schedule: str
    forecaster: str


@dataclass(frozen=True)
class Frontier(Sequence[FrontierRow]):
    """A row for every number of computed steps, fewest first; `str()` gives a table."""

    rows: tuple[FrontierRow, ...]
    policy: str

    @overload
    def __getitem__(self, index: int) -> FrontierRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[FrontierRow, ...]: ...
    def __getitem__(self, index: int | slice) -> FrontierRow | tuple[FrontierRow, ...]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False, title=self.policy, title_justify="left")
        for heading in ("computed", "MACs", "predicted error"):
            table.add_column(heading, justify="right", no_wrap=True)
        for heading in ("forecaster", "schedule"):
            table.add_column(heading, no_wrap=True)
        for row in self.rows:
            cut, error = f"{row.macs_reduction:.2f}x fewer", f"{row.expected_error:.2g}"
            table.add_row(str(row.computed_steps), cut, error, row.forecaster, row.schedule)
        plain = Console(width=110, color_system=None)
        with plain.capture() as captured:
            plain.print(table)
        return captured.get().rstrip()

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw predicted error over MACs reduction, both logarithmic, into an image file.

        The format is that of the suffix (png, svg, pdf). Raises ImportError without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError(
                "Frontier.plot needs matplotlib: pip install matplotlib; "
                "print(frontier) gives the same as a table"
            ) from None
        shown = [row for row in self.rows if row.expected_error > 0.0]
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(
            [row.macs_reduction for row in shown], [row.expected_error for row in shown], "o-", ms=3
        )
        axes.set(xscale="log", yscale="log", xlabel="MACs, times fewer")
        axes.set_ylabel("predicted relative error of the sample")
        axes.set_title(f"frontier ({self.policy})", loc="left")
        ticks = [t for t in (1, 1.5, 2, 3, 5, 7, 10, 15, 25) if t <= self.rows[0].macs_reduction]
        axes.set_xticks(ticks, [f"{t:g}x" for t in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def frontier_of(
    gram: Array,
    timesteps: Sequence[float],
    c: Sequence[float] | Array,
    policy: str,
    power: float | None = None,
    *,
    clipped: ClippedRun | None = None,
) -> Frontier:
    """Solve every budget without the search over single steps: a survey, in seconds."""
    steps, rows, weights = len(timesteps), list[FrontierRow](), np.asarray(c, dtype=np.float64)
    for n in range(min(FEWEST, steps), steps + 1):
        found, error = solve(
            gram,
            timesteps,
            weights,
            computed_steps=n,
            policy=policy,
            search=False,
            power=power,
            clipped=clipped,
        )
        rows.append(FrontierRow(n, steps / n, error, found.schedule, found.forecaster))
    return Frontier(tuple(rows), policy)
