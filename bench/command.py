"""`ditcache bench`: a model's policies and other people's caches at equal MACs."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import pareto
from .arena import MODELS, Arena, Setting
from .chosen import read_chosen
from .contest import Contest, Race, names
from .environment import write_json
from .ledger import Ledger, Record
from .peers import PEERS
from .policies import OURS, POLICIES, SOLVERS, ZOO
from .standing import document, refusals, table
from .video_workload import VIDEO_WORKLOADS
from .walls import Walls, best_walls
from .walls import table as walls_table

DEFAULT = (*OURS, "reuse", "taylor-2", "taylor-2-best", "lagrange-2", "lagrange-2-best", *SOLVERS)
QUICK = {"samples": 4, "batch": 2, "calibration": 2, "steps": 8}


def bench(
    model: Annotated[str, typer.Argument(help=f"{', '.join(MODELS)}, or module:factory")],
    *,
    budgets: Annotated[
        str, typer.Option(help="how many times fewer MACs, comma separated")
    ] = "2,3,5",
    peers: Annotated[str, typer.Option(help="all, none, or names, comma separated")] = "all",
    policies: Annotated[
        str, typer.Option(help="names, comma separated, all, or default")
    ] = "default",
    only: Annotated[
        str, typer.Option(help="measure these alone; all others stay as they are")
    ] = "",
    redo: Annotated[
        bool, typer.Option("--redo", help="measure again what has been measured")
    ] = False,
    samples: Annotated[int, typer.Option(help="held-out samples")] = 256,
    batch: Annotated[int, typer.Option(help="samples in a batch")] = 8,
    calibration: Annotated[int, typer.Option(help="samples to plan and tune on")] = 16,
    steps: Annotated[int, typer.Option(help="denoising steps; 0: the model's own, or 50")] = 0,
    seed: Annotated[int, typer.Option(help="first seed of the held-out samples", min=0)] = 0,
    settings: Annotated[
        Path | None,
        typer.Option(help="result.json of an earlier run whose tuned settings are used again"),
    ] = None,
    tuning: Annotated[
        int | None,
        typer.Option(
            help="batches that libraries are tuned on (default: all of --calibration)", min=1
        ),
    ] = None,
    stop_behind: Annotated[
        float, typer.Option(help="give up a method that is so many dB behind after 64 samples")
    ] = float("inf"),
    quick: Annotated[
        bool, typer.Option("--quick", help="see in seconds that it runs; its numbers mean nothing")
    ] = False,
    walls: Annotated[
        bool,
        typer.Option("--walls", help="time the results of an earlier run; measure nothing else"),
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="show the results of an earlier run; measure nothing")
    ] = False,
    rounds: Annotated[int, typer.Option(help="rounds of timing", min=1)] = 5,
    out: Annotated[Path, typer.Option(help="folder for everything", file_okay=False)] = Path(
        "out/bench"
    ),
) -> None:
    """Compare caching methods at equal MACs on held-out prompts and seeds; resumes by itself."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", category=UserWarning)
    size = QUICK if quick else {}
    steps = steps or (VIDEO_WORKLOADS[model].steps if model in VIDEO_WORKLOADS else 50)
    size = {"samples": samples, "batch": batch, "calibration": calibration, "steps": steps} | size
    if min(size.values()) < 1:
        raise typer.BadParameter(f"sizes are at least 1, got {size}")
    contestants = _chosen(policies, (*POLICIES, *SOLVERS, *ZOO), DEFAULT, "--policies")
    contestants += _chosen(peers, tuple(PEERS), tuple(PEERS), "--peers")
    measured = _chosen(only, tuple(names()), (), "--only") if only else contestants
    wanted = _budgets(budgets)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    try:
        setting = Setting(model, **size, seed=seed)
        chosen = read_chosen(settings, setting) if settings else {}
        arena = Arena(setting, out)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    folder = out / model.replace(":", ".")
    with _progress(console) as progress:
        task = progress.add_task("", total=len(measured) * len(wanted))

        def say(what: str) -> None:
            progress.update(task, description=what)
            if not console.is_terminal:
                logging.getLogger("ditcache.bench").info(what)

        def tick() -> None:
            progress.update(task, advance=1)

        contest = Contest(
            arena, folder, say, tick, chosen=chosen, race=Race(stop_behind), tuning=tuning
        )
        timed = Ledger(folder / "walls.jsonl", arena.key)
        if walls:
            try:
                Walls(contest, timed, rounds).run(measured, wanted)
            except ValueError as error:
                raise typer.BadParameter(str(error), param_hint="--walls") from error
        elif not report:
            contest.run(measured, wanted, redo=redo)
    made = document(contest, contestants, wanted)
    _add_walls(made, timed)
    write_json(folder / "result.json", made)
    plots = pareto.save(made, folder)
    console.print(table(contest, contestants, wanted))
    console.print(_standings(made))
    for record in made["walls"]:
        console.print(walls_table(record))
    for name, reason in refusals(contest, contestants, wanted).items():
        console.print(f"{name} does not apply: {reason}", markup=False)
    for name, note in made["notes"].items():
        console.print(f"{name}: {note}")
    console.print(", ".join(str(path) for path in [folder / "result.json", *plots]))


def _standings(made: Record) -> Table:
    shown = Table(title="ours against the best of each kind (positive: ahead)", box=None)
    for heading in ("budget", "metric", "", "against", "", "difference (95%)", ""):
        shown.add_column(heading, no_wrap=True)
    colours = {"ahead": "green", "behind": "red", "level": "yellow"}
    for row in made["against"]:
        shown.add_row(
            f"{row['budget']:g}x",
            row["metric"],
            row["ours"],
            row["kind"],
            row["other"],
            f"{row['difference']:+.4g} ({row['low']:+.4g} to {row['high']:+.4g})",
            f"[{colours[row['verdict']]}]{row['verdict']}[/]",
        )
    return shown


def _add_walls(made: Record, timed: Ledger) -> None:
    """Put each cell's best speedup beside its MACs reduction."""
    made["walls"] = list(timed.records.values())
    for record in timed.records.values():
        fastest = best_walls(record)
        for cell in made["cells"]:
            if cell["budget"] == record["budget"] and cell["contestant"] in fastest:
                wall = fastest[cell["contestant"]]
                cell |= {"speedup": wall["speedup"], "timed": wall["variant"]}


def _chosen(text: str, known: tuple[str, ...], default: tuple[str, ...], option: str) -> list[str]:
    if text in ("all", "none", "default", ""):
        return {"all": list(known), "default": list(default)}.get(text, [])
    chosen = [part.strip() for part in text.split(",")]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise typer.BadParameter(
            f"no {', '.join(unknown)}; expected among {', '.join(known)}", param_hint=option
        )
    return chosen


def _budgets(text: str) -> list[float]:
    try:
        found = [float(part.strip().rstrip("x")) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or any(budget <= 1 for budget in found):
        wanted = f"expected numbers above 1 like 2,3,5; got {text!r}"
        raise typer.BadParameter(wanted, param_hint="--budgets")
    return found


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:>44}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def main(arguments: list[str]) -> None:
    """Run with command-line arguments; raises ValueError or typer's own error for bad input."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(bench)
    app(args=arguments or ["--help"], prog_name="ditcache bench", standalone_mode=False)
