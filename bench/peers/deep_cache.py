"""DeepCache's own helper for UNets (PyPI `DeepCache` 0.1.1)."""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn

from ..contestants import Family, Knobs
from .base import Peer


class DeepCacheHelper(Peer):
    """Reuses everything below one skip connection for the next n - 1 steps.

    The helper expects a pipeline, of which it reads the UNet and the scheduler's timesteps: it gets
    these two, so that the pipeline itself stays as it is.
    """

    BRANCHES = (0, 1, 2, 3)
    """Skip connections from the outermost inwards; the deeper, the less is saved."""

    def families(self, budget: float) -> list[Family]:
        return [
            Family(
                {"cache_branch_id": branch, "skip_mode": "uniform"},
                "cache_interval",
                range(2, self.arena.setting.steps // 2 + 1),
            )
            for branch in self.BRANCHES
        ]

    def enable(self, model: nn.Module, knobs: Knobs) -> None:
        from DeepCache import DeepCacheSDHelper

        if not hasattr(model, "up_blocks"):
            raise TypeError("DeepCacheSDHelper hooks a UNet's down, mid and up blocks")
        pipeline = SimpleNamespace(unet=model, scheduler=self.arena.workload.pipeline.scheduler)
        helper = DeepCacheSDHelper(pipe=pipeline)
        helper.set_params(**knobs)
        helper.enable()
