"""M2: TF32 matrix products and torch.compile with CUDA graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

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
            compiled: Any = torch.compile(module, mode="reduce-overhead")
            if subject.device.type == "cuda":
                compiled.register_forward_hook(copy_output)
            setattr(subject.pipeline, name, compiled)


def copy_output(module: nn.Module, given: Any, made: Any) -> Any:
    """Forward hook: outputs that the next replay of a CUDA graph does not overwrite.

    With guidance as a second call, the first one's output is used after it.
    """
    return tree_map_only(torch.Tensor, torch.clone, made)
