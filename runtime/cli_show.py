"""Plans and profiles as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..passes.plan_format import Plan, RegionSchedule
from ..passes.profile import Profile

COMPUTED, FORECAST = "█", "·"
_BARS = "▁▂▃▄▅▆▇█"
_REDUCTIONS = (1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)


def console(width: int = 120) -> Console:
    """Print at a terminal's own width, and wide enough for whole lines in a pipe."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=width)


def plan_view(plan: Plan, *, weights: bool = True) -> Iterator[Any]:
    """Parts to print: what the plan is, a strip of its steps, its rows of weights."""
    steps = len(plan.timesteps)
    yield facts(
        {
            "plan": f"{plan.computed_steps} of {steps} steps ({plan.macs_reduction:.2f}x fewer)",
            "policy": plan.policy,
            "expected error": "unknown" if plan.expected_error is None else _g(plan.expected_error),
            "chosen": plan.chosen or "by prediction, no plan was run",
            "guidance": "unknown" if plan.guidance is None else _g(plan.guidance),
            "solver weights": plan.solver,
            "timesteps": f"{_g(plan.timesteps[0])} … {_g(plan.timesteps[-1])}",
            "output": _shape(plan.shape, plan.dtype),
            "model": plan.signature,
        }
    )
    for region in plan.regions:
        yield Text(f"\n{region.region}: {region.forecaster} on {region.schedule}", style="bold")
        yield Text(strip(region, steps))
        yield Text(_ruler(steps), style="dim")
        if weights:
            yield _weights(plan, region)


def profile_view(profile: Profile) -> Iterator[Any]:
    """Parts to print: what was measured, each region's drift, what each budget would cost."""
    steps = len(profile.timesteps)
    yield facts(
        {
            "profile": f"{profile.samples} generations of {steps} steps",
            "branches": ", ".join(name or "(one)" for name in profile.branches),
            "guidance": "unknown" if profile.guidance is None else _g(profile.guidance),
            "solver weights": _source(profile),
            "timesteps": f"{_g(profile.timesteps[0])} … {_g(profile.timesteps[-1])}",
            "inner products": f"sketch of {profile.sketch}" if profile.sketch else "exact",
            "MACs a step": "unknown" if profile.macs is None else f"{profile.macs:.4g}",
            "model": profile.signature,
        }
    )
    table = Table(box=None, pad_edge=False, title="\ndrift from step to step", title_justify="left")
    for heading in ("region", "output", "mean", "highest", "over the steps"):
        table.add_column(heading, no_wrap=True)
    for region in profile.regions:
        drift = profile.drift(region.region)
        row = (_g(float(drift.mean())), _g(float(drift.max())), sparkline(drift.tolist()))
        table.add_row(region.region, _shape(region.shape, region.dtype), *row)
    yield table
    wanted = {max(2, int(steps / reduction)) for reduction in _REDUCTIONS}
    frontier = Table(box=None, pad_edge=False, title="\nfrontier (edf)", title_justify="left")
    for heading in ("computed", "reduction", "expected error", "forecaster", "schedule"):
        frontier.add_column(heading, no_wrap=True)
    for row in profile.frontier():
        if row.computed_steps in wanted:
            error, cut = _g(row.expected_error), f"{row.macs_reduction:.2f}x"
            frontier.add_row(str(row.computed_steps), cut, error, row.forecaster, row.schedule)
    yield frontier


def strip(region: RegionSchedule, steps: int) -> str:
    """One character a step: computed or forecast."""
    computed = set(region.computed)
    return "".join(COMPUTED if step in computed else FORECAST for step in range(steps))


def sparkline(values: Sequence[float]) -> str:
    """One bar a value, lowest to highest."""
    low, high = min(values), max(values)
    scaled = (np.asarray(values) - low) / ((high - low) or 1.0) * (len(_BARS) - 1)
    return "".join(_BARS[round(v)] for v in scaled.tolist())


def facts(lines: dict[str, str]) -> Table:
    """Label and value, one pair a line."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in lines.items():
        table.add_row(label, value)
    return table


def _weights(plan: Plan, region: RegionSchedule) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("step", justify="right")
    table.add_column("timestep", justify="right")
    table.add_column("")
    table.add_column("weights of the computed outputs, newest first")
    for step, row in enumerate(region.weights):
        computed = step in region.computed
        mark = COMPUTED if computed else FORECAST
        text = "computed" if computed else "  ".join(f"{w:+9.4f}" for w in row)
        table.add_row(str(step), _g(plan.timesteps[step]), mark, text)
    return table


def _ruler(steps: int) -> str:
    return "".join(f"{step:<10}" for step in range(0, steps, 10))[:steps].rstrip()


def _shape(shape: tuple[int, ...] | None, dtype: str | None) -> str:
    listed = "unknown" if shape is None else f"[{', '.join(map(str, shape))}]"
    return f"{dtype or ''}{listed}"


def _source(profile: Profile) -> str:
    if profile.clipped is not None:
        return "told from elements of a sampler that clips"
    return "from the grid" if profile.solver is None else "measured"


def _g(value: float) -> str:
    return f"{value:.4g}"
