"""M1: INT8 weight-only quantisation of the denoiser's linear layers, by torchao."""

from __future__ import annotations

from torch import nn

from ..subjects import Subject
from .base import Method, MethodError, Setup, Stage


class Int8Weights(Method):
    """Symmetric per-channel INT8 weights; activations and arithmetic stay as they are."""

    name = "M1"
    title = "INT8 weights"
    stage = Stage.COMPRESSION
    changes = frozenset({"the format of linear weights"})

    def prepare(self, subject: Subject, setup: Setup) -> None:
        try:
            from torchao.quantization import (  # pyright: ignore[reportMissingImports]
                Int8WeightOnlyConfig,
                quantize_,
            )
        except ImportError as error:
            raise MethodError(f"M1 needs torchao: pip install torchao ({error})") from error
        with setup.clocked("quantise"):
            for module in subject.denoisers.values():
                quantize_(module, Int8WeightOnlyConfig())
        linears = sum(
            isinstance(m, nn.Linear) for d in subject.denoisers.values() for m in d.modules()
        )
        if not linears:
            raise MethodError("the denoiser has no linear layer to quantise")
        setup.notes.append(f"{linears} linear layers with INT8 weights")
