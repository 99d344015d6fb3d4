"""diffusers' SeaCache, given the step metadata and the latents that it needs to skip anything."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..contestants import Family, Knobs
from .diffusers_hooks import DiffusersHook


class SeaCache(DiffusersHook):
    """Skips all blocks while the spectrally filtered latents change little.

    It computes everything, silently, unless each call says its step and sigma and a callback hands
    it the latents as pictures. FluxPipeline gives neither; both are given here from outside.
    """

    note = "given the step metadata that the pipeline does not pass; without it, it never skips"

    def families(self, budget: float) -> list[Family]:
        return [
            Family(
                {"residual_order": order, "max_consecutive_cached": longest},
                "threshold",
                span=(0.02, 8.0),
            )
            for order in (0, 1)
            for longest in (int(budget), 0)
        ]

    def enable(self, model: nn.Module, knobs: Knobs) -> None:
        from diffusers.hooks import SeaCacheConfig, apply_sea_cache

        workload = self.arena.workload

        def latents(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            return workload.latent_pictures(hidden)

        config = SeaCacheConfig(**knobs, raw_vision_callback=latents)
        self.apply(model, apply_sea_cache, config)
        if hasattr(model, "cache_context"):
            _tell_steps(model, workload, self.arena.setting.steps)


def _tell_steps(model: Any, workload: Any, steps: int) -> None:
    """Add step, sigma and step count to every `cache_context` that the pipeline opens."""
    plain = model.cache_context

    @contextmanager
    def context(name: str, **known: Any) -> Generator[None]:
        index, sigma = workload.position()
        told = {"step_index": index, "sigma": sigma, "num_inference_steps": steps}
        with plain(name, **(told | known)):
            yield

    model.cache_context = context
