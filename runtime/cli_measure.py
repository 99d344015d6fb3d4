"""The verbs that measure whole pipelines: compare, evaluate, report. Their work is in `bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from .cli_show import console

if TYPE_CHECKING:
    from ..bench.compare.subjects import Request

MODEL = (
    "a small model's name (flux-emoji), a diffusers folder or hub name, or package.module:factory"
)

METHOD_WEIGHTS = ("distilled", "lcm", "interpolation")
SCORER_WEIGHTS = ("clip", "inception", "aesthetic", "image-reward", "lpips")
WIDTH = 180  # the tables of these verbs have many columns

Model = Annotated[str, typer.Argument(help=MODEL)]
Out = Annotated[Path, typer.Option(help="folder for results", file_okay=False)]
Inputs = Annotated[Path | None, typer.Option(help="folder of pictures or prompts.txt", exists=True)]
Steps = Annotated[int | None, typer.Option(help="denoising steps of the baseline", min=1)]
Frames = Annotated[int | None, typer.Option(help="frames of a video", min=1)]
Height = Annotated[int | None, typer.Option(help="height in pixels", min=1)]
Width = Annotated[int | None, typer.Option(help="width in pixels", min=1)]
Seed = Annotated[int, typer.Option(help="seed of the first sample; sample i has seed + i")]
Dtype = Annotated[str, typer.Option(help="float16, bfloat16, float32; auto: float16 on a GPU")]
Device = Annotated[str, typer.Option(help="cuda, cpu; auto: cuda if there is one")]
Weights = Annotated[
    list[str] | None,
    typer.Option(help="ROLE=PATH_OR_HUB[#sha256=HEX], once for each role"),
]


def compare(
    model: Model,
    *,
    out: Out,
    methods: Annotated[
        str | None, typer.Option(help="their names, comma separated (default: all)")
    ] = None,
    combine: Annotated[
        str | None, typer.Option(help="combinations of them, as C3+M1,M1+M2")
    ] = None,
    inputs: Inputs = None,
    count: Annotated[int, typer.Option(help="most inputs that are used", min=1)] = 20,
    repeats: Annotated[int, typer.Option(help="how often each timed sample is run", min=1)] = 3,
    timing_samples: Annotated[int, typer.Option(help="how many samples are timed", min=1)] = 1,
    only_timing: Annotated[
        bool,
        typer.Option("--only-timing", help="measure times again; quality stays as it was measured"),
    ] = False,
    work: Annotated[
        Path | None, typer.Option(help="folder for resumable state (default: OUT/work)")
    ] = None,
    weights: Weights = None,
    steps: Steps = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> int:
    """Compare ways to make a pipeline faster, and their combinations: time, memory, quality."""
    from ..bench.bad_input import BadInput
    from ..bench.compare.combine import wanted
    from ..bench.compare.command import run
    from ..bench.compare.settings import Settings

    def start() -> int:
        sizes = Sizes(steps=steps, frames=frames, height=height, width=width, seed=seed)
        request = _request(model, inputs, sizes, dtype, device)
        settings = Settings(
            request=replace(request, count=count, weights=_roles(weights, METHOD_WEIGHTS)),
            names=tuple(wanted(_listed(methods), _listed(combine))),
            repeats=repeats,
            timing_samples=timing_samples,
            only_timing=only_timing,
        )
        return run(settings, out, work or out / "work", console(WIDTH))

    return _checked(start, BadInput)


def evaluate(
    model: Model,
    *,
    out: Out,
    prompts: Annotated[
        Path | None, typer.Option(help="one a line, JSON, MS-COCO's captions, VBench's suite")
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="how many samples are judged", min=2)] = 64,
    plan: Annotated[
        list[Path] | None,
        typer.Option(help="file of a plan to judge; may be repeated", exists=True),
    ] = None,
    speedup: Annotated[
        list[float] | None,
        typer.Option(help="make a plan for this speedup and judge it; may be repeated", min=1.0),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help='folder of pictures, or "real" for a small model\'s data')
    ] = None,
    inputs: Inputs = None,
    batch: Annotated[int, typer.Option(help="samples generated together", min=1)] = 8,
    inner: Annotated[str, typer.Option(help="compiler of the cached model's parts")] = "eager",
    vbench: Annotated[
        str | None, typer.Option(help="Python that imports vbench, if this one does not")
    ] = None,
    weights: Weights = None,
    steps: Steps = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> int:
    """Judge many samples as sets and in pairs; resumable; under torchrun on many processes."""
    from ..bench.bad_input import BadInput
    from ..bench.evaluate.command import run
    from ..bench.evaluate.settings import Settings

    def start() -> int:
        sizes = Sizes(steps=steps, frames=frames, height=height, width=width, seed=seed)
        settings = Settings(
            request=_request(model, inputs, sizes, dtype, device),
            count=n,
            block=batch,
            plans=tuple(str(path) for path in plan or ()),
            speedups=tuple(speedup or ()),
            inner=_inner(inner),
            reference=reference,
            weights=_roles(weights, SCORER_WEIGHTS),
            vbench=vbench,
        )
        return run(settings, prompts, out, console(WIDTH))

    return _checked(start, BadInput)


def report(
    folder: Annotated[Path, typer.Argument(help="folder with results of compare or evaluate")],
    *,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="file of the page (default: FOLDER/report.html)"),
    ] = None,
    votes: Annotated[
        list[Path] | None,
        typer.Option(help="votes exported from blind.html; may be repeated", exists=True),
    ] = None,
) -> int:
    """Write one self-contained page of the results, and a blind A/B page beside it."""
    from ..bench.bad_input import BadInput
    from ..bench.report.command import run

    return _checked(lambda: run(folder, output, votes or [], console(WIDTH)), BadInput)


class Sizes(TypedDict):
    """What of a request the command line gives as numbers."""

    steps: int | None
    frames: int | None
    height: int | None
    width: int | None
    seed: int


def _request(model: str, inputs: Path | None, sizes: Sizes, dtype: str, device: str) -> Request:
    from ..bench.compare.subjects import Request, check_name

    check_name(model)
    where = _device(device)
    given = str(inputs.resolve()) if inputs else None
    return Request(model=model, inputs=given, dtype=_dtype(dtype, where), device=where, **sizes)


def _checked(start: Callable[[], int], bad: type[ValueError]) -> int:
    try:
        return start()
    except bad as error:
        raise typer.BadParameter(str(error)) from error


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _roles(given: list[str] | None, known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given or []:
        role, sign, where = text.partition("=")
        if not sign or not role or not where:
            raise typer.BadParameter(f"--weights {text!r}: expected ROLE=PATH_OR_HUB")
        if role not in known:
            raise typer.BadParameter(
                f"--weights {text!r}: no role {role!r}; expected one of {', '.join(known)}"
            )
        found[role] = where
    return found


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(name)
    except RuntimeError:
        raise typer.BadParameter(f"--device {name}: expected cpu, cuda or auto") from None
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise typer.BadParameter(f"--device {name}: this machine has no CUDA device")
    return name


def _inner(name: str) -> str:
    from .config import OptionError, parse

    try:
        return parse({"inner": name}).inner
    except OptionError as error:
        raise typer.BadParameter(f"--inner: {error}") from None


def _dtype(name: str, device: str) -> str:
    if name == "auto":
        return "float16" if device.startswith("cuda") else "float32"
    if name not in ("float16", "bfloat16", "float32"):
        raise typer.BadParameter(f"--dtype {name}: expected float16, bfloat16, float32 or auto")
    return name
