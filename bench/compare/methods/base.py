"""What a method is: something that changes a pipeline once, and perhaps what comes out of it."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar

from torch import Tensor

from ..meter import wait_for_device
from ..subjects import Subject


class MethodError(RuntimeError):
    """The method cannot run on this model or machine; the message is the row's reason."""


class Refused(ValueError):
    """Two methods do not go together; the message is the row's reason."""


class Stage(IntEnum):
    """Order in which the methods of a combination are prepared: weights before what reads them."""

    WEIGHTS = 0
    COMPRESSION = 1
    SAMPLER = 2
    COMPILER = 3


@dataclass
class Setup:
    """What the preparation of one combination hands on.

    Attributes:
        names: the methods of the combination.
        seconds: one-off costs by name ("quantise", "compile", ...), apart from generation.
        notes: what a reader of the row has to know.
        inner: compiler of the parts that caching runs.
        quality_only: why times, MACs and memory of this row mean nothing, if they do not.

    """

    names: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    notes: list[str] = field(default_factory=list[str])
    inner: str = "eager"
    quality_only: str | None = None

    @contextmanager
    def clocked(self, name: str) -> Generator[None]:
        """Book the block's seconds under this name."""
        wait_for_device()
        start = time.perf_counter()
        try:
            yield
        finally:
            wait_for_device()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Method:
    """One way to be faster. Subclasses say what they change; the default changes nothing."""

    name: str
    title: str
    stage: Stage
    changes: ClassVar[frozenset[str]] = frozenset()
    """What of the pipeline it sets: two methods that set the same exclude each other."""
    role: ClassVar[str] = ""
    """Of the weights that it needs, as in `--weights ROLE=PLACE`; "" if none."""

    def prepare(self, subject: Subject, setup: Setup) -> None:
        """Change the subject in place; raises MethodError if it cannot."""

    def finish(self, subject: Subject, setup: Setup) -> None:
        """What must follow a first generation, e.g. making a plan. Called once, untimed."""

    def post(self, frames: Tensor) -> Tensor:
        """Work on the frames [F, 3, H, W] that counts as generation time."""
        return frames

    def macs(self, subject: Subject) -> tuple[float, float] | None:
        """MACs that ran since `finish`, and those without it, if the method counts them itself."""
        return None

    def facts(self, subject: Subject) -> dict[str, object]:
        """What the row should carry beside numbers, e.g. the plan's steps."""
        return {}

    def compatible_with(self, other: Method) -> str | None:
        """Why it does not go with another method; None if it does."""
        both = self.changes & other.changes
        if both:
            return f"{self.name} and {other.name} both set {' and '.join(sorted(both))}"
        return None
