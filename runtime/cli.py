"""The `ditcache` command: plans, profiles and remembered plans; measuring whole pipelines."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..passes import policies
from ..passes.plan_format import Plan, PlanError
from ..passes.profile import Profile, ProfileError
from .cli_measure import compare, evaluate, report
from .cli_show import console, plan_view, profile_view
from .store import plans_folder

POLICY = (
    f"within the budget: {', '.join(policies.SOLVED)}; or with options in its place, as "
    f"fora:interval=4: {', '.join(policies.ZOO)}"
)
app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Look at plans and profiles, make plans, manage remembered ones; measure pipelines.",
    epilog="For example: ditcache plan flux.profile.safetensors --speedup 3 -o flux.plan.json. "
    "Exits with 0, or with 2 and one line on stderr for input that cannot be used.",
)
PACKAGES = ("ditcache", "torch", "triton", "diffusers", "numpy", "scipy")

File = Annotated[Path, typer.Argument(help="a plan (.json) or a profile (.safetensors)")]


@app.command()
def show(file: File) -> None:
    """Show a plan (steps, weights, expected error) or a profile (regions, drift, frontier)."""
    made = _load(file)
    view = plan_view(made) if isinstance(made, Plan) else profile_view(made)
    out = console()
    for part in view:
        out.print(part)


@app.command()
def plan(
    profile: Annotated[Path, typer.Argument(help="a profile, from ditcache.calibrate(...).save")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="where the plan goes")],
    speedup: Annotated[float | None, typer.Option(help="steps over computed steps")] = None,
    computed_steps: Annotated[int | None, typer.Option(help="steps to compute")] = None,
    max_error: Annotated[float | None, typer.Option(help="relative error of the sample")] = None,
    policy: Annotated[str, typer.Option(help=POLICY)] = "edf",
    guidance: Annotated[float | None, typer.Option(help="guidance scale, if not measured")] = None,
) -> None:
    """Make the best plan within a budget (exactly one of the three) from a profile."""
    budgets = {"--speedup": speedup, "--computed-steps": computed_steps, "--max-error": max_error}
    given = [name for name, value in budgets.items() if value is not None]
    name, options = policies.parse(policy)
    if len(given) != 1 and name not in policies.ZOO:
        said = f"got {' and '.join(given)}" if given else "got none"
        raise _Refused(f"give exactly one of {', '.join(budgets)}; {said}")
    loaded = _load(profile)
    if isinstance(loaded, Plan):
        raise _Refused(f"{profile}: this is a plan; a plan is made from a profile")
    made = loaded.plan(
        speedup=speedup,
        computed_steps=computed_steps,
        max_error=max_error,
        policy=name,
        guidance=guidance,
        **options,
    )
    made.save(output)
    out = console()
    for part in plan_view(made, weights=False):
        out.print(part)
    out.print(f"written to {output}")


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="delete them, and recordings too")] = False,
) -> None:
    """List the plans that models have made and remembered, and where they are."""
    folder = plans_folder()
    out = console()
    files = sorted(folder.glob("*/*.plan.json"))
    begun = len(list(folder.glob("*/*.profile.safetensors")))
    if clear:
        if folder.is_dir():
            shutil.rmtree(folder)
        out.print(f"{len(files)} remembered plans deleted from {folder}")
        return
    out.print(f"remembered plans in {folder}: {len(files) or 'none'}")
    if begun:
        out.print(f"recordings that are no plan yet: {begun}")
    if not files:
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "policy", "steps", "forecaster", "expected error", "file"):
        table.add_column(heading, overflow="fold")
    for path in files:
        short = f"{path.parent.name[:8]}/{path.name}"
        try:
            found = Plan.load(path)
        except PlanError as broken:
            table.add_row("?", "", "", "", f"unreadable: {broken}", short)
            continue
        error = "" if found.expected_error is None else f"{found.expected_error:.2g}"
        steps = f"{found.computed_steps} of {len(found.timesteps)}"
        forecaster = found.regions[0].forecaster
        table.add_row(found.signature[:12], found.policy, steps, forecaster, error, short)
    out.print(table)


@app.command()
def info() -> None:
    """Show versions, devices, the registered backend and where plans are remembered."""
    import torch
    from torch._dynamo.backends.registry import list_backends

    registered = "ditcache" in list_backends(exclude_tags=())
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("python", f"{platform.python_version()} on {platform.machine()}")
    for package in PACKAGES:
        table.add_row(package, _version(package))
    table.add_row(
        "cpu", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    )
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    table.add_row("cuda", ", ".join(names) or "none")
    table.add_row("backend", "registered" if registered else "NOT registered: reinstall ditcache")
    table.add_row("plans in", str(plans_folder()))
    console().print(table)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Compare caching methods and other libraries at equal MACs: `ditcache bench MODEL`."""
    try:
        from ..bench.command import main as run
    except ImportError as missing:
        raise _Refused(f"{missing}; bench needs: pip install 'ditcache[peers]'") from missing
    run(context.args)


for verb in (compare, evaluate, report):
    app.command()(verb)


class _Refused(ValueError):
    """Bad input; its message is the one line that the user sees."""


def _load(path: Path) -> Plan | Profile:
    """Read a plan or a profile, told apart by content; raises PlanError or ProfileError."""
    if path.is_dir():
        raise _Refused(f"{path}: a folder; expected a plan or a profile")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise _Refused(f"{path}: no such file") from None
    # JSON text begins with a brace; safetensors with the length of its header.
    is_plan = head.lstrip()[:1] == b"{" or path.suffix == ".json"
    return Plan.load(path) if is_plan else Profile.load(path)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main(arguments: list[str] | None = None) -> int:
    """Run the command and give its exit code: 2, with one line on stderr, for bad input."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return app(args=arguments or ["--help"], prog_name="ditcache", standalone_mode=False) or 0
    except (PlanError, ProfileError, _Refused, OSError) as refused:
        message = str(refused)
    except Exception as error:
        # typer's own complaints about options; their class depends on where typer keeps click.
        if not hasattr(error, "format_message"):
            raise
        message = f"{error.format_message().rstrip('.')}; try --help"  # pyright: ignore[reportAttributeAccessIssue]
    print(f"ditcache: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
