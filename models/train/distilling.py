"""What the distillations of both video models share: options, copies, and where weights go."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor

from .common import write_half
from .fitting import Loss, add_options, fit

Kind = Literal["guidance", "consistency"]
KINDS: tuple[Kind, ...] = ("guidance", "consistency")
# A model's folder holds the distilled weights as `unet-guided`, `transformer-4-steps` and so on.
SUFFIX: dict[Kind, str] = {"guidance": "guided", "consistency": "4-steps"}
SCHEDULER = "scheduler-4-steps"

Model = TypeVar("Model", bound=ModelMixin)


def distillation_parser(
    doc: str | None, folder: Path, *, guidance: float, batch: int, ema: float
) -> argparse.ArgumentParser:
    """Options of a distillation script: what to distil, the teacher's guidance and its folder."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("kind", choices=KINDS)
    add_options(parser, minutes=10, batch=batch, lr=3e-4, ema=ema, log_every=25, seed=1)
    parser.add_argument("--guidance", type=float, default=guidance, help="the teacher's scale")
    parser.add_argument("--folder", type=Path, default=folder, help="the teacher's")
    return parser


def copies(student: Model) -> tuple[Model, Model]:
    """A copy that is trained, and one that will hold its averaged weights."""
    trained = copy.deepcopy(student).requires_grad_(True)
    return trained, copy.deepcopy(student).requires_grad_(False)


def pseudo_huber(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean over a batch of sqrt(|made - wanted|^2 + c^2) - c: squared near zero, linear far off.

    The constant is what "Improved Techniques for Training Consistency Models" (arXiv 2310.14189)
    proposes for this many dimensions.
    """
    apart = (made - wanted).square().flatten(1).sum(dim=1)
    constant = 0.00054 * made[0].numel() ** 0.5
    return ((apart + constant**2).sqrt() - constant).mean()


def distil(
    student: Model,
    loss_of: Callable[[int], Loss],
    args: argparse.Namespace,
    *,
    name: str,
    part: str,
    target: Model | None = None,
    scheduler: SchedulerMixin | None = None,
    judge: Callable[[Model], Mapping[str, float]] | None = None,
) -> None:
    """Train or go on training; weights, log and the scheduler that they need go to `args.folder`.

    Args:
        student: what is trained.
        loss_of: as `fit` takes it.
        args: of `distillation_parser`.
        name: the model's, of resumable state and log.
        part: which of the pipeline's parts it is, e.g. "unet".
        target: gets the averaged weights before each step.
        scheduler: written beside the weights if the teacher's does not fit them.
        judge: figures of the finished model for the log.

    """
    if scheduler is not None:
        writable: Any = scheduler
        writable.save_pretrained(str(args.folder / SCHEDULER))
    fit(
        student,
        loss_of,
        args,
        name=f"{name}_{args.kind}",
        write=partial(write_half, out=args.folder / f"{part}-{SUFFIX[args.kind]}"),
        log_to=args.folder / f"{args.kind}_log.json",
        betas=(0.9, 0.999),
        weight_decay=0.0,
        target=target,
        judge=judge,
    )
