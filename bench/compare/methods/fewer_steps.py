"""M3: the same sampler with fewer steps."""

from __future__ import annotations

from ..subjects import Subject
from .base import Method, MethodError, Setup, Stage

FULL = 25


class FewerSteps(Method):
    """`steps` of 25; where the baseline has another number, the same share of it."""

    stage = Stage.SAMPLER
    changes = frozenset({"the number of steps"})

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.name = f"M3-{steps}"
        self.title = f"{steps} of {FULL} steps"

    def prepare(self, subject: Subject, setup: Setup) -> None:
        wanted = max(1, round(self.steps * subject.steps / FULL))
        if wanted >= subject.steps:
            raise MethodError(f"the baseline has {subject.steps} steps; none can be left out")
        if subject.steps != FULL:
            setup.notes.append(f"{wanted} of {subject.steps} steps")
        subject.steps = wanted
