"""M2: TF32 matrix products and torch.compile with CUDA graphs."""

from __future__ import annotations

import torch

from ..subjects import Subject
from .base import Method, Setup, Stage


class Compiled(Method):
    """`torch.compile(mode="reduce-overhead")`; together with caching, caching's own compiler.

    Caching is a backend of torch.compile itself: in a combination its parts are compiled by
    Inductor, in place of a second torch.compile around it.
    """

    name = "M2"
    title = "TF32 + torch.compile"
    stage = Stage.COMPILER

    def prepare(self, subject: Subject, setup: Setup) -> None:
        torch.set_float32_matmul_precision("high")
        if not torch.cuda.is_available():
            setup.notes.append("on a CPU there is neither TF32 nor a CUDA graph: Inductor only")
        if any(name == "exact" or name.startswith("C") for name in setup.names):
            setup.inner = "inductor"
            return
        for name, module in subject.denoisers.items():
            compiled = torch.compile(module, mode="reduce-overhead")
            setattr(subject.pipeline, name, compiled)
