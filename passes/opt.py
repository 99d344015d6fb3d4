"""ditcache-opt: run passes over a model's step and look at the IR, without weights.

The passes' counterpart of mlir-opt: results go to stdout or `-o`, dumps and reports to stderr.
"""

from __future__ import annotations

import enum
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ..kernels.formats import FORMATS
from . import pipeline
from .base import Pass, PassContext, PassError, PassResult
from .ir import StepGraph
from .opt_emit import to_dot, to_json, to_python
from .opt_html import to_html
from .opt_load import InputError, load
from .opt_plan import Wanted, wanted
from .opt_report import check_writable, statistics_text, times_text, write
from .opt_stats import stats_text
from .pipeline import Report
from .plan_format import PlanError
from .printer import print_graph
from .profile import ProfileError
from .verifier import VerifyError

# Click's, which typer brings along under changing names.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(add_completion=False, rich_markup_mode=None)
EPILOG = """\b
For example:
  ditcache-opt flux-dev --height 1024 --width 1024 --stats
  ditcache-opt flux-emoji --policy taylor-1 --speedup 3 --print-after insert-cache
  ditcache-opt my_models:make --plan flux-50.plan.json --verify-each

Results go to stdout or -o, dumps and reports to stderr. Exits with 0; with 2 and one line on
stderr for input that cannot be used; with 1 for a broken rule of the verifier.
"""


class Emit(enum.StrEnum):
    """What to write."""

    TEXT = "text"
    JSON = "json"
    DOT = "dot"
    HTML = "html"
    PYTHON = "python"


@dataclass
class Printing:
    """Which dumps to print, and the graph as the analysis left it."""

    before: frozenset[str]
    after: frozenset[str]
    changed_only: bool
    context: PassContext
    analysed: StepGraph | None = None
    report: Report = field(default_factory=Report)

    def start(self, graph: StepGraph, step: Pass) -> None:
        """See the graph before a pass."""
        if step.name in self.before:
            sys.stderr.write(print_graph(graph, before=step.name, plan=self.context.plan))

    def __call__(self, before: StepGraph, step: Pass, result: PassResult, seconds: float) -> None:
        """See one pass go by."""
        plan = self.context.plan
        if step.name in self.after or (self.changed_only and result.modified):
            sys.stderr.write(print_graph(result.graph, after=step.name, plan=plan))
        if "regions" in result.graph.facts and "cached" not in result.graph.facts:
            self.analysed = result.graph if "hoisted" not in result.graph.facts else self.analysed


@app.command(epilog=EPILOG)
def opt(  # noqa: PLR0917
    model: Annotated[
        str, typer.Argument(help="Zoo name, package.module:factory, or file.pt2.")
    ] = "",
    passes: Annotated[str, typer.Option(help="Comma-separated passes.")] = "all",
    print_before: Annotated[str, typer.Option(help="Dump before a pass, or all.")] = "",
    print_after: Annotated[str, typer.Option(help="Dump after a pass, or all.")] = "",
    print_after_change: Annotated[
        bool, typer.Option("--print-after-change", help="Dump after passes that changed the IR.")
    ] = False,
    verify_each: Annotated[
        bool, typer.Option("--verify-each", help="Recompute every shape after each pass.")
    ] = False,
    stop_after: Annotated[str, typer.Option(help="Last pass to run.")] = "",
    time_passes: Annotated[
        bool, typer.Option("--time-passes", help="Report the seconds of each pass.")
    ] = False,
    pass_statistics: Annotated[
        bool, typer.Option("--pass-statistics", help="Report what each pass did.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print work, weights and live bytes by region.")
    ] = False,
    plan: Annotated[Path | None, typer.Option(help="File of a plan to insert.")] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="File of a profile: shows drift; with --policy, plans from it."),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(help="Make up a plan by a policy, e.g. taylorseer:order=2,interval=4."),
    ] = "",
    speedup: Annotated[
        float | None, typer.Option(help="Steps over computed steps, for --policy (2).")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the grid, for --policy (50).")] = None,
    region: Annotated[
        str | None, typer.Option(help="Regions for --policy, comma separated (denoiser).")
    ] = None,
    slot_budget: Annotated[int | None, typer.Option(help="Most bytes that slots may take.")] = None,
    slot_format: Annotated[str, typer.Option(help="bf16, fp16, fp8_e4m3 or int8 slots.")] = "",
    emit: Annotated[
        Emit | None, typer.Option(help="Form in which the result is printed (text).")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the result to a file, not to stdout."),
    ] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a video.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows of the call.")] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Trace with symbolic sizes.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the zoo and exit.")] = False,
    list_passes: Annotated[
        bool, typer.Option("--list-passes", help="List the passes and exit.")
    ] = False,
) -> None:
    """Run ditcache's passes over one denoising step and print the result."""
    if list_:
        from ..models import zoo

        return write("\n".join(zoo.names()) + "\n", output)
    if list_passes:
        return write("\n".join(pipeline.BY_NAME) + "\n", output)
    if not model:
        raise InputError("no model given; --list names those of the zoo")
    chosen = _passes(passes, stop_after)
    if stats and not any(p.name == "form-regions" for p in chosen):
        raise InputError("--stats needs regions: run at least up to form-regions")
    before, after = _dumps("--print-before", print_before), _dumps("--print-after", print_after)
    asked = wanted(plan, profile, policy, speedup=speedup, steps=steps, region=region)
    sizes = {"height": height, "width": width, "frames": frames, "batch": batch}
    _check_least(1, sizes)
    _check_least(0, {"slot-budget": slot_budget})
    if slot_format and slot_format not in FORMATS:
        raise InputError(f"--slot-format: no {slot_format!r}; there are {', '.join(FORMATS)}")
    check_writable(output)
    context = PassContext(
        profile=asked.profile, slot_budget=slot_budget, slot_format=slot_format or None
    )
    printing = Printing(before, after, print_after_change, context)
    graph = load(model, sizes, dynamic=dynamic)
    graph = _run(graph, chosen, printing, asked, "full" if verify_each else "fast")
    if time_passes:
        sys.stderr.write(times_text(printing.report))
    if pass_statistics:
        sys.stderr.write(statistics_text(printing.report))
    text = ""
    if stats and printing.analysed is not None:
        text += stats_text(printing.analysed, graph.slots)
    if emit is not None or not stats:
        text += ("\n" if text else "") + _emit(emit or Emit.TEXT, graph, printing)
    write(text, output)


def _run(
    graph: StepGraph, chosen: Sequence[Pass], printing: Printing, asked: Wanted, check: str
) -> StepGraph:
    """Run the passes; the plan is bound once the regions are known, which policies name."""
    names = [p.name for p in chosen]
    last = next((n for n in ("form-regions", "classify-inputs") if n in names), "")
    split = names.index(last) + 1 if last else 0
    for bound, part in enumerate((chosen[:split], chosen[split:])):
        graph, report = pipeline.run(
            graph, part, printing.context, before=printing.start, callback=printing, check=check
        )
        printing.report.seconds += report.seconds
        printing.report.stats += report.stats
        printing.report.changed += report.changed
        if part and not bound:
            printing.context.plan = asked.bind(graph)
    return graph


def _check_least(least: int, options: Mapping[str, int | None]) -> None:
    for name, value in options.items():
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: expected a whole number of at least {least}")


def _passes(names: str, stop_after: str) -> list[Pass]:
    if names in ("", "all"):
        chosen = list(pipeline.DEFAULT)
    else:
        chosen = [_pass("--passes", n.strip()) for n in names.split(",")]
    if stop_after:
        last = _pass("--stop-after", stop_after)
        if last not in chosen:
            raise InputError(f"--stop-after {stop_after}: that pass is not among --passes {names}")
        chosen = chosen[: chosen.index(last) + 1]
    return chosen


def _pass(option: str, name: str) -> Pass:
    if name not in pipeline.BY_NAME:
        raise InputError(f"{option}: no pass {name!r}; there are {', '.join(pipeline.BY_NAME)}")
    return pipeline.BY_NAME[name]


def _dumps(option: str, names: str) -> frozenset[str]:
    if names == "all":
        return frozenset(pipeline.BY_NAME)
    return frozenset(_pass(option, n.strip()).name for n in names.split(",") if n)


def _emit(form: Emit, graph: StepGraph, printing: Printing) -> str:
    plan, report = printing.context.plan, printing.report
    match form:
        case Emit.TEXT:
            last = report.stats[-1][0] if report.stats else ""
            return print_graph(graph, after=last, plan=plan)
        case Emit.JSON:
            times = dict(report.seconds)
            stats = {n: {"seconds": round(times[n], 4), **s} for n, s in report.stats}
            return to_json(graph, printing.analysed, stats)
        case Emit.DOT:
            return to_dot(printing.analysed or graph)
        case Emit.HTML:
            return to_html(graph, printing.analysed, plan)
        case Emit.PYTHON:
            return to_python(graph)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits 0, 2 for bad input (one line on stderr), 1 for a broken rule."""
    warnings.simplefilter("ignore")
    try:
        command = typer.main.get_command(app)
        code = command.main(
            args=list(arguments) if arguments is not None else None,
            prog_name="ditcache-opt",
            standalone_mode=False,
        )
        sys.exit(code if isinstance(code, int) else 0)
    except (InputError, PassError, PlanError, ProfileError) as wrong:
        _fail(str(wrong))
    except UsageError as usage:
        _fail(f"{cast(Any, usage).format_message()} (--help lists all options)")
    except VerifyError as broken:
        sys.stderr.write(f"ditcache-opt: {broken}\n")
        sys.exit(1)
    except BrokenPipeError:
        # The reader has seen enough; keep the interpreter from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(message: str) -> None:
    sys.stderr.write(f"ditcache-opt: {' '.join(message.split())}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
