"""Caching by other libraries, at as many computed steps as ditcache's plans."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from typing import Any

import torch

from .loop import Call, Loop
from .ways import Way, spread


@dataclass
class TaylorSeer(Way):
    """diffusers' TaylorSeer in lite mode: the model's output alone is forecast."""

    speedup: float = 3.0

    def interval(self, steps: int) -> int:
        """The shortest one that computes no more steps than a plan of this speedup."""
        wanted = max(3, len(spread(steps, self.speedup)))
        return next(n for n in range(1, steps + 1) if len(intervals(steps, n)) <= wanted)

    def prepare(self, loop: Loop) -> Call:
        from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

        config = TaylorSeerCacheConfig(
            cache_interval=self.interval(loop.steps),
            disable_cache_before_step=2,
            max_order=1,
            use_lite_mode=True,
        )
        if hasattr(loop.module, "enable_cache"):
            loop.module.enable_cache(config)  # pyright: ignore[reportCallIssue]
        else:
            apply_taylorseer_cache(loop.module, config)
        return torch.compile(loop.module) if self.compiled else loop.module

    def computed(self, loop: Loop) -> list[int]:
        return intervals(loop.steps, self.interval(loop.steps))

    def restore(self, loop: Loop) -> None:
        loop.module.disable_cache()  # pyright: ignore[reportCallIssue]


def intervals(steps: int, every: int) -> list[int]:
    """The steps that TaylorSeer computes: the first two, and from the fourth on each `every`-th."""
    return [s for s in range(steps) if s < 2 or (s - 3) % every == 0]


@dataclass
class CacheDit(Way):
    """cache-dit's DBCache with a static mask: the same computed steps as ditcache's."""

    speedup: float = 3.0

    def prepare(self, loop: Loop) -> Call:
        import cache_dit

        logging.getLogger("CACHE_DIT").setLevel(logging.ERROR)
        computed = self.computed(loop)
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            max_warmup_steps=1,
            steps_computation_mask=[int(s in computed) for s in range(loop.steps)],
            steps_computation_policy="static",
            enable_separate_cfg=False,
            num_inference_steps=loop.steps,
        )
        cache_dit.enable_cache(loop.module, cache_config=config)
        called = torch.compile(loop.module) if self.compiled else loop.module
        calls = itertools.count()

        def call(**kwargs: Any) -> Any:
            if next(calls) % loop.steps == 0:  # a new generation, of which only a pipeline tells it
                cache_dit.refresh_context(loop.module, cache_config=config)
            return called(**kwargs)

        return call

    def computed(self, loop: Loop) -> list[int]:
        return spread(loop.steps, self.speedup)

    def restore(self, loop: Loop) -> None:
        import cache_dit

        cache_dit.disable_cache(loop.module)
