"""What is compared: a pipeline as diffusers made it, and the samples it is asked for."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..bad_input import BadInput
from .inputs import InputError, Sample, Skipped, from_folder

Kind = Literal["text-to-image", "text-to-video", "image-to-video"]
DENOISERS = ("transformer", "transformer_2", "unet")
AS_IT_IS = "as-it-is"
"""In the place of distilled weights: the denoiser's own, where only their cost is looked at."""


class SubjectError(BadInput):
    """The model cannot be loaded or driven; says what was expected."""


@dataclass
class Subject:
    """A pipeline ready to be called, and everything that a method may change about the call.

    Attributes:
        name: as in tables.
        pipeline: an instance of a diffusers pipeline; methods change it in place.
        kind: what goes in and what comes out.
        samples: what is generated and judged.
        calibration: other samples, for methods that look at some before they start.
        arguments: of every call (size, guidance, `num_frames` for video).
        steps: denoising steps of the baseline.
        weights: paths or hub names by role: "distilled", "lcm", "interpolation".
        schedulers: folders of the schedulers that such weights need, by role.
        arguments_with: of the call when the weights of a role are used, e.g. guidance off.
        skipped: inputs that were left out, and why.
        real: EfficientNet-Lite0 features [M, 1280] of the data that the model was trained on.
        scope: what each generation runs in.
        unjudged: why only time and memory mean anything, e.g. random weights; "" if all does.

    """

    name: str
    pipeline: Any
    kind: Kind
    samples: list[Sample]
    calibration: list[Sample] = field(default_factory=list[Sample])
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    steps: int = 25
    weights: dict[str, str] = field(default_factory=dict[str, str])
    schedulers: dict[str, str] = field(default_factory=dict[str, str])
    arguments_with: dict[str, dict[str, Any]] = field(default_factory=dict[str, "dict[str, Any]"])
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    real: Callable[[], Tensor] | None = None
    scope: Callable[[], AbstractContextManager[object]] = nullcontext
    unjudged: str = ""

    @property
    def denoisers(self) -> dict[str, nn.Module]:
        """The pipeline's denoising networks by attribute name."""
        found = {name: getattr(self.pipeline, name, None) for name in DENOISERS}
        return {name: module for name, module in found.items() if module is not None}

    @property
    def frames(self) -> int | None:
        """How many frames a sample has; None for pictures."""
        return self.arguments.get("num_frames")

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipeline.device)

    def generate(self, sample: Sample, *, steps: int | None = None) -> Tensor:
        """Run the pipeline once; gives float frames [F, 3, H, W] in [0, 1] (F = 1 for pictures)."""
        # Some schedulers draw from the global generator whatever they are given.
        torch.manual_seed(sample.seed)
        with self.scope():
            made = self.pipeline(
                **(self.arguments | sample.arguments),
                num_inference_steps=self.steps if steps is None else steps,
                generator=torch.Generator().manual_seed(sample.seed),
                output_type="pt",
            )
        frames = made.images if self.kind == "text-to-image" else made.frames[0]
        return torch.as_tensor(frames)

    def fingerprint_of_weights(self) -> str:
        """Hash of the denoisers' weights (names, shapes, sums)."""
        digest = hashlib.sha256()
        for module in self.denoisers.values():
            for name, tensor in sorted(module.state_dict().items()):
                total = tensor.double().sum().item() if tensor.is_floating_point() else 0.0
                digest.update(f"{name}:{tuple(tensor.shape)}:{total!r}".encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Request:
    """How the user named a subject."""

    model: str
    inputs: str | None = None
    prompts: tuple[str, ...] = ()
    count: int = 20
    dtype: str = "float32"
    device: str = "cpu"
    steps: int | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    seed: int = 0
    weights: dict[str, str] = field(default_factory=dict[str, str])


def check_name(model: str) -> None:
    """Raise SubjectError at once for what is no model's name, before anyone asks the hub for it."""
    from .small import SMALL

    there = bool(model) and Path(model).expanduser().exists()
    if model in SMALL or ":" in model or there:
        return
    looks_like_a_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if "/" in model and not looks_like_a_path:
        return  # ORG/NAME: the hub's business
    raise SubjectError(
        f"no model {model!r}: expected one of {', '.join(SMALL)}, a diffusers folder, "
        "a hub name (ORG/NAME) or package.module:factory"
    )


def load(request: Request) -> Subject:
    """Load a small model by name, `package.module:factory`, or a diffusers folder or hub name.

    A factory takes the Request and returns a Subject, or takes nothing and returns a pipeline.

    Raises:
        SubjectError: the model cannot be loaded, or none of its inputs can be used.

    """
    from .small import SMALL

    check_name(request.model)
    dtype = getattr(torch, request.dtype)
    if request.model in SMALL:
        subject = SMALL[request.model](request)
    elif ":" in request.model and not Path(request.model).exists():
        subject = _from_factory(request)
    else:
        subject = _around(_pretrained(request, dtype), request)
    subject.weights |= request.weights
    if request.steps is not None:
        subject.steps = request.steps
    given = {"height": request.height, "width": request.width, "num_frames": request.frames}
    subject.arguments |= {name: value for name, value in given.items() if value is not None}
    if not subject.samples:
        why = "; ".join(f"{s.name}: {s.reason}" for s in subject.skipped) or "none given"
        raise SubjectError(f"{request.model}: no usable input ({why})")
    if subject.kind == "image-to-video":
        width, height = (_size(subject, side) for side in ("width", "height"))
        for sample in (*subject.samples, *subject.calibration):
            sample.fit(width, height)
    subject.pipeline.set_progress_bar_config(disable=True)
    return subject


def kind_of(pipeline: type) -> Kind:
    """Tell from the signature of `__call__` what pipelines of a class take and make."""
    parameters = inspect.signature(pipeline.__call__).parameters
    if "num_frames" in parameters:
        return "image-to-video" if "image" in parameters else "text-to-video"
    if "prompt" in parameters:
        return "text-to-image"
    raise SubjectError(
        f"{pipeline.__name__} takes neither a prompt nor frames; "
        "text-to-image, text-to-video and image-to-video pipelines can be compared"
    )


def _inputs(request: Request, kind: Kind) -> tuple[list[Sample], list[Skipped]]:
    if request.prompts:
        if kind == "image-to-video":
            raise SubjectError(f"{request.model} starts from pictures; give --inputs, not prompts")
        made = [
            Sample(f"{i:06}", request.seed + i, {"prompt": prompt}, caption=prompt)
            for i, prompt in enumerate(request.prompts)
        ]
        return made, []
    if request.inputs is None:
        raise SubjectError(
            f"{request.model}: give --inputs, a folder with "
            + ("pictures" if kind == "image-to-video" else "prompts.txt")
        )
    try:
        return from_folder(Path(request.inputs), kind, request.count, request.seed)
    except InputError as error:
        raise SubjectError(str(error)) from error


def _size(subject: Subject, side: str) -> int:
    default = inspect.signature(type(subject.pipeline).__call__).parameters[side].default
    return int(subject.arguments.get(side) or default)


def _from_factory(request: Request) -> Subject:
    module, _, name = request.model.partition(":")
    try:
        factory: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SubjectError(f"{request.model}: no such factory ({error})") from error
    made = factory(request) if inspect.signature(factory).parameters else factory()
    return made if isinstance(made, Subject) else _around(made, request)


def _pretrained(request: Request, dtype: torch.dtype) -> Any:
    """The pipeline of a folder or hub name, once its inputs have been found to be usable."""
    import diffusers

    model = request.model
    try:
        about: Any = diffusers.DiffusionPipeline.load_config(model)
        made = getattr(diffusers, str(about.get("_class_name")), None)
        if made is not None:  # else of a class that comes with it
            _inputs(request, kind_of(made))
        return diffusers.DiffusionPipeline.from_pretrained(model, dtype=dtype)
    except SubjectError:
        raise
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise SubjectError(
            f"{model}: neither a small model's name, nor a diffusers folder, nor a hub name that "
            f"can be had here ({first})"
        ) from error


def _around(pipeline: Any, request: Request) -> Subject:
    kind = kind_of(type(pipeline))
    pipeline.to(request.device)
    samples, skipped = _inputs(request, kind)
    parameters = inspect.signature(type(pipeline).__call__).parameters
    frames = parameters["num_frames"].default if "num_frames" in parameters else None
    arguments: dict[str, Any] = {}
    if "num_frames" in parameters:
        # SVD leaves it to the model's configuration.
        arguments["num_frames"] = frames or pipeline.unet.config.num_frames
    return Subject(
        name=Path(request.model).name.rpartition(":")[2],
        pipeline=pipeline,
        kind=kind,
        samples=samples,
        skipped=skipped,
        calibration=[s.reseeded(1_000_000 + i) for i, s in enumerate(samples[-4:])],
        arguments=arguments,
    )
