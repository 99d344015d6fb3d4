"""M4: distilled weights at the full number of steps."""

from __future__ import annotations

from ..subjects import Subject
from .base import Method, Setup, Stage
from .weights import apply_arguments, given, replace_denoiser


class Distilled(Method):
    """Another, faster denoiser in the place of the pipeline's; role "distilled"."""

    name = "M4"
    title = "distilled weights"
    stage = Stage.WEIGHTS
    changes = frozenset({"the denoiser"})
    role = "distilled"

    def prepare(self, subject: Subject, setup: Setup) -> None:
        with setup.clocked("load weights"):
            where = given(subject, self.role, self.name)
            replace_denoiser(subject, where, self.name)
        apply_arguments(subject, self.role, where, setup)
