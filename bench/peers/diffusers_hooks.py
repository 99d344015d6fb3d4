"""diffusers' own caches: FirstBlockCache, TaylorSeer, PAB and FasterCache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from ..contestants import Family, Knobs
from .base import Peer


class DiffusersHook(Peer):
    """A cache that diffusers applies by hooks on the model's blocks."""

    def apply(self, model: Any, function: Callable[..., Any], config: Any) -> None:
        """Enable as documented: through the model, or by the function where it has no caches."""
        if hasattr(model, "enable_cache"):
            model.enable_cache(config)
        else:
            function(model, config)


class FirstBlockCache(DiffusersHook):
    """Skips all blocks but the first while the first one's residual changes little."""

    def families(self, budget: float) -> list[Family]:
        return [Family({}, "threshold", span=(0.02, 4.0))]

    def enable(self, model: nn.Module, knobs: Knobs) -> None:
        from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

        self.apply(model, apply_first_block_cache, FirstBlockCacheConfig(**knobs))


class TaylorSeer(DiffusersHook):
    """Forecasts module outputs by a Taylor polynomial, computing every n-th step.

    `lite` forecasts the output projection alone and skips all blocks; otherwise the outputs of
    attention and feed-forward layers are forecast, as in the paper.
    """

    FULL: ClassVar[list[str]] = [
        r"^(blocks|transformer_blocks|single_transformer_blocks)\.\d+\."
        r"(attn\d?|ff|ff_context|ffn|proj_mlp|proj_out)$"
    ]

    def families(self, budget: float) -> list[Family]:
        steps = self.arena.setting.steps
        found: list[Family] = []
        intervals = [n for n in range(2, 13) if self._warm_ups(n, steps / budget)]
        for rank, interval in enumerate(intervals[:2]):
            dense = {
                "cache_interval": interval,
                "disable_cache_before_step": self._warm_ups(interval, steps / budget)[-1],
            }
            for lite in (True, False)[: 2 - rank]:
                found += [Family(dense | {"max_order": order, "lite": lite}) for order in (1, 2)]
            if ending := self._warm_ups(interval, steps / budget - 1):
                dense["disable_cache_before_step"] = ending[-1]
                dense |= {"disable_cache_after_step": steps - 1, "lite": False}
                found += [Family(dense | {"max_order": order}) for order in (1, 2)]
        return found

    def _warm_ups(self, interval: int, computed: float) -> list[int]:
        """Lengths of the dense start that leave at most `computed` steps, and nearly as many."""
        steps = self.arena.setting.steps
        counts = {
            warm: warm + sum((s - warm - 1) % interval == 0 for s in range(warm, steps))
            for warm in range(1, steps)
        }
        return [warm for warm, count in counts.items() if 0.9 * computed <= count <= computed]

    def enable(self, model: nn.Module, knobs: Knobs) -> None:
        from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

        lite = knobs["lite"]
        config = TaylorSeerCacheConfig(
            **{k: v for k, v in knobs.items() if k != "lite"},
            use_lite_mode=lite,
            cache_identifiers=None if lite else self.FULL,
            taylor_factors_dtype=torch.float32,
        )
        self.apply(model, apply_taylorseer_cache, config)


class PyramidAttentionBroadcast(DiffusersHook):
    """Reuses attention outputs for the next n - 1 calls."""

    note = (
        "has one state for both guidance branches: where they run one after the other it counts "
        "calls, not steps, and hands outputs from one to the other"
    )

    def families(self, budget: float) -> list[Family]:
        ranges = ([(-1, 1001)], [(100, 800)], [(100, 950)])
        return [
            Family(
                {"spatial_attention_timestep_skip_range": span},
                "spatial_attention_block_skip_range",
                [2, 3, 4, 5, 6, 8, 10, 20],
            )
            for (span,) in ranges
        ]

    def enable(self, model: nn.Module, knobs: Knobs) -> None:
        from diffusers.hooks import (
            PyramidAttentionBroadcastConfig,
            apply_pyramid_attention_broadcast,
        )

        config = PyramidAttentionBroadcastConfig(**knobs, current_timestep_callback=self.now)
        self.apply(model, apply_pyramid_attention_broadcast, config)


class FasterCache(DiffusersHook):
    """Extrapolates attention outputs, and the unconditional branch where it is batched."""

    note = PyramidAttentionBroadcast.note

    def families(self, budget: float) -> list[Family]:
        return [
            Family(
                {"spatial_attention_timestep_skip_range": span, "weight": weight},
                "spatial_attention_block_skip_range",
                [2, 3, 5, 10, 20],
            )
            for span in ((-1, 681), (-1, 999))  # at 1000 it would read what it has not yet
            for weight in (0.0, 0.5)
        ]

    def enable(self, model: nn.Module, knobs: Knobs) -> None:
        from diffusers.hooks import FasterCacheConfig, apply_faster_cache

        weight = knobs["weight"]
        config = FasterCacheConfig(
            **{k: v for k, v in knobs.items() if k != "weight"},
            spatial_attention_block_identifiers=(r"blocks.*attn",),
            attention_weight_callback=lambda _: weight,
            current_timestep_callback=self.now,
            # Sequential guidance: no call holds both branches.
            is_guidance_distilled=not self.arena.workload.batched_guidance,
            tensor_format="BCHW",
        )
        self.apply(model, apply_faster_cache, config)
