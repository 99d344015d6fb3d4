"""M5: 2:4 semi-structured sparsity of the denoiser's linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..subjects import Subject
from .base import Method, MethodError, Setup, Stage

GROUP, KEPT = 4, 2


def magnitude_mask(weight: Tensor) -> Tensor:
    """Mark the two largest of every four neighbours in a row of [out, in]; in % 4 == 0."""
    groups = weight.detach().abs().reshape(-1, GROUP)
    kept = groups.topk(KEPT, dim=1).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, kept, True).view(weight.shape)


class SemiStructuredSparse(Method):
    """Magnitude pruning without retraining; on CUDA the sparse format, else masked weights.

    A masked weight shows what the pruning does to quality. It is computed as densely as before, so
    the row carries no time, memory or MACs.
    """

    name = "M5"
    title = "2:4 sparsity"
    stage = Stage.COMPRESSION
    changes = frozenset({"the format of linear weights"})

    def prepare(self, subject: Subject, setup: Setup) -> None:
        fast = subject.device.type == "cuda"
        if subject.unjudged and not fast:
            raise MethodError(
                f"2:4 kernels need CUDA, and there is no quality ({subject.unjudged})"
            )
        pruned = skipped = 0
        with setup.clocked("prune"):
            for module in subject.denoisers.values():
                for layer in module.modules():
                    if not isinstance(layer, nn.Linear):
                        continue
                    weight = layer.weight
                    if weight.shape[1] % GROUP:
                        skipped += 1
                        continue
                    masked = weight.detach() * magnitude_mask(weight)
                    if fast:
                        converted = self._convert(masked)
                        if converted is None:
                            skipped += 1
                            continue
                        masked = converted
                    layer.weight = nn.Parameter(masked, requires_grad=False)
                    pruned += 1
        if not pruned:
            raise MethodError("no linear layer of the denoiser can be 2:4 sparse")
        setup.notes.append(f"{pruned} linear layers pruned, {skipped} left dense")
        if not fast:
            setup.quality_only = "2:4 kernels need CUDA; magnitude masks show the quality only"

    def _convert(self, weight: Tensor) -> Tensor | None:
        from torch.sparse import to_sparse_semi_structured

        try:
            return to_sparse_semi_structured(weight)
        except (RuntimeError, ValueError):
            return None  # the kernels have smallest shapes and types
