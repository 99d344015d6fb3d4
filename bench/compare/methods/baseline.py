"""M0: the pipeline as it is, all steps."""

from __future__ import annotations

from .base import Method, Stage


class Baseline(Method):
    """What all others are measured against; a second time it shows the noise of the times."""

    stage = Stage.SAMPLER

    def __init__(self, name: str = "M0", title: str = "baseline") -> None:
        self.name = name
        self.title = title

    def compatible_with(self, other: Method) -> str | None:
        return f"{self.name} is the baseline; {other.name} on it is {other.name}"
