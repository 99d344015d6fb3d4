"""cache-dit's DBCache, alone and with its TaylorSeer calibrator."""

from __future__ import annotations

import logging
import os
from typing import ClassVar

from torch import nn

from ..contestants import Family, Knobs
from .base import Peer

os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")


class DBCache(Peer):
    """Computes the first Fn and last Bn blocks and decides by them whether to skip the rest.

    Also tried: its static masks (`steps_computation_mask`), dense at first and wider later.
    """

    ORDERS: ClassVar[tuple[int, ...]] = (0,)
    STARTS: ClassVar[tuple[tuple[int, int], ...]] = ((1, 3), (1, 8), (2, 3))
    """First blocks always computed, and steps computed in full at the start."""

    def families(self, budget: float) -> list[Family]:
        found: list[Family] = []
        for order in self.ORDERS:
            for first, warm in self.STARTS:
                fixed = {
                    "Fn_compute_blocks": first,
                    "Bn_compute_blocks": 0,
                    "max_warmup_steps": warm,
                    "order": order,
                }
                found.append(Family(fixed, "residual_diff_threshold", span=(0.02, 4.0)))
            fixed = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "order": order}
            for warm in (2, 4):
                masks = _masks(self.arena.setting.steps, budget, warm)
                found += [Family(fixed, "steps_computation_mask", masks)] * bool(masks)
        return found

    def enable(self, model: nn.Module, knobs: Knobs) -> None:
        import cache_dit

        logging.getLogger("CACHE_DIT").setLevel(logging.ERROR)
        order = knobs["order"]
        kept = {k: v for k, v in knobs.items() if k != "order"}
        if "steps_computation_mask" in kept:
            kept |= {"steps_computation_policy": "static", "max_warmup_steps": 1}
        config = cache_dit.DBCacheConfig(
            **kept,
            enable_separate_cfg=not self.arena.workload.batched_guidance,
            num_inference_steps=self.arena.setting.steps,
        )
        calibrator = None
        if order:
            calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order)
        # The transformer alone: enabled on a pipeline, it would patch the pipeline's class.
        cache_dit.enable_cache(model, cache_config=config, calibrator_config=calibrator)

    def disable(self, model: nn.Module) -> None:
        import cache_dit

        cache_dit.disable_cache(model)


class DBCacheTaylorSeer(DBCache):
    """DBCache whose skipped residuals are forecast by a Taylor polynomial."""

    ORDERS = (1, 2)
    STARTS = ((1, 3), (1, 8))


def _masks(steps: int, budget: float, warm: int) -> list[list[int]]:
    """Static masks of fewer and fewer computed steps: `warm` first, then evenly to the last.

    A skipped step still computes Fn blocks: the shallower the model, the further below
    `steps / budget` they have to go.
    """
    found: list[list[int]] = []
    for computed in range(int(steps / budget), warm, -1):
        rest = computed - warm
        stops = {round(warm - 1 + (steps - warm) * (i + 1) / rest) for i in range(rest)}
        found.append([int(s < warm or s in stops) for s in range(steps)])
    return found
