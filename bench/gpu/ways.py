"""The ways to run a model: as it is, compiled, cached by ditcache, cached by another library."""

from __future__ import annotations

import gc
import itertools
import logging
import math
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ditcache
import torch

from .loop import Call, Loop

NEVER = 1e6
LONG = 5.0
"""Seconds of a loop from which on one round is measured."""


@dataclass
class Way(ABC):
    """How a loop's model is called. `prepare` may run the loop; `restore` undoes it."""

    name: str
    compiled: bool = False

    @property
    def shared(self) -> str:
        """Names what is compiled, where ways after this one can go on with it; "" if none can."""
        return ""

    @abstractmethod
    def prepare(self, loop: Loop) -> Call:
        """Give what to call in place of the model."""

    def computed(self, loop: Loop) -> list[int]:
        """The steps that run in full."""
        return list(range(loop.steps))

    def about(self, model: Any) -> dict[str, Any]:
        """What else to write down after measuring."""
        return {}

    def restore(self, loop: Loop) -> None:  # noqa: B027  # most leave nothing behind
        """Leave the model as it was."""


class Eager(Way):
    def prepare(self, loop: Loop) -> Call:
        return loop.module


@dataclass
class Compiled(Way):
    mode: str | None = None
    inner: str = "inductor"

    def prepare(self, loop: Loop) -> Call:
        if self.mode is None:
            return torch.compile(loop.module, backend=self.inner)
        return torch.compile(loop.module, mode=self.mode)


def spread(steps: int, speedup: float) -> list[int]:
    """ceil(steps / speedup) computed steps: the first two, then evenly up to the last one."""
    count = max(1, math.ceil(steps / speedup))
    if count < 3:
        return list(range(count))
    rest = count - 2
    return [0, 1, *(round(1 + (steps - 2) * (i + 1) / rest) for i in range(rest))]


@dataclass
class Ditcache(Way):
    """`speedup` None: the exact tier. The plan forecasts by a line through the last two outputs.

    Random weights have no drift worth a profile: what a plan costs in time does not depend on its
    weights.
    """

    speedup: float | None = None
    graphs: bool = False
    inner: str = "inductor"
    guard: str = "warn"

    @property
    def options(self) -> dict[str, Any]:
        return {
            "inner": self.inner,
            "cuda_graphs": self.graphs,
            "guard": self.guard,
            "policy": "exact",
        }

    @property
    def shared(self) -> str:
        return f"ditcache {self.options}"

    def prepare(self, loop: Loop) -> Call:
        model, profile = self._compiled(loop)
        ditcache.reset(model)
        if self.speedup is not None:
            ditcache.apply(model, self._plan(loop, profile))
        return model

    def _compiled(self, loop: Loop) -> tuple[Any, ditcache.Profile]:
        """The model, compiled by the first of several ways with these options, and its profile."""
        if self.shared not in loop.made:
            model: Any = torch.compile(loop.module, backend="ditcache", options=self.options)
            loop.run(model)
            profile = ditcache.calibrate(model, lambda _: loop.run(model), samples=1)
            loop.made[self.shared] = model, profile
        return loop.made[self.shared]

    def _plan(self, loop: Loop, profile: ditcache.Profile) -> ditcache.Plan:
        computed = self.computed(loop)
        line = (2.0, -1.0) if len(computed) > 1 else (1.0, 0.0)
        rows = tuple((0.0, 0.0) if s in computed else line for s in range(loop.steps))
        region = ditcache.RegionSchedule("denoiser", tuple(computed), rows, 2, "line", "spread")
        # Compared at each computed step, with what no output changes by: never an alarm.
        checks = tuple((NEVER if s else 0.0, *([1.0, 0.0] if s else [0.0, 0.0])) for s in computed)
        return ditcache.Plan(
            profile.signature, profile.timesteps, (region,), "bench", checks=checks
        ).validate()

    def computed(self, loop: Loop) -> list[int]:
        return spread(loop.steps, self.speedup or 1.0)

    def about(self, model: Any) -> dict[str, Any]:
        found = ditcache.summary(model)
        return {
            "calls": found.calls,
            "forecast": found.forecast,
            "slot_bytes": found.slot_bytes,
            "hoisted_bytes": found.hoisted_bytes,
            "captures": found.captures,
            "replays": found.replays,
            "graph_bytes": found.graph_bytes,
            "uncaptured": found.uncaptured,
            "fallbacks": found.fallbacks,
        }


@dataclass
class FirstBlock(Ditcache):
    """ditcache's First Block Cache: what a decision at each step costs, on the host or the device.

    `computed` is not known ahead: `about` tells how many calls were forecast.
    """

    on_device: bool = False
    threshold: float = 0.1

    @property
    def options(self) -> dict[str, Any]:
        return super().options | {"device_decisions": self.on_device}

    def prepare(self, loop: Loop) -> Call:
        model, profile = self._compiled(loop)
        ditcache.reset(model)
        plan = profile.plan(policy="firstblockcache", threshold=self.threshold)
        return ditcache.apply(model, plan)


@dataclass
class TaylorSeer(Way):
    """diffusers' TaylorSeer in lite mode: the model's output alone is forecast."""

    speedup: float = 3.0

    def prepare(self, loop: Loop) -> Call:
        from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

        config = TaylorSeerCacheConfig(
            cache_interval=round(self.speedup),
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
        every = round(self.speedup)
        return [s for s in range(loop.steps) if s < 2 or (s - 3) % every == 0]

    def restore(self, loop: Loop) -> None:
        loop.module.disable_cache()  # pyright: ignore[reportCallIssue]


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


@dataclass(frozen=True)
class Choice:
    """Which ways to measure, in order of interest; `quick` leaves out what costs most."""

    quick: bool = False
    inner: str = "inductor"
    speedups: Sequence[float] = field(default=(2.0, 3.0, 5.0))

    def ways(self) -> list[Way]:
        found: list[Way] = [
            Eager("eager"),
            Compiled("compile", compiled=True, inner=self.inner),
            Ditcache("ditcache exact", compiled=True, inner=self.inner),
        ]
        found += [
            Ditcache(f"ditcache {s:g}x", compiled=True, speedup=s, inner=self.inner)
            for s in self.speedups
        ]
        exact = Ditcache("ditcache exact graphs", compiled=True, graphs=True, inner=self.inner)
        found += [exact, replace(exact, name="ditcache 3x graphs", speedup=3.0)]
        if not self.quick:
            found.append(replace(exact, name="ditcache 3x guarded", speedup=3.0, guard="compute"))
            first = FirstBlock("first block, host", compiled=True, inner=self.inner)
            device = replace(first, name="first block, device", graphs=True, on_device=True)
            found += [first, device]
        found += [TaylorSeer("diffusers TaylorSeer 3x"), CacheDit("cache-dit 3x")]
        if not self.quick:
            found.append(Compiled("reduce-overhead", compiled=True, mode="reduce-overhead"))
            found.append(TaylorSeer("diffusers TaylorSeer 3x compiled", compiled=True))
            found.append(CacheDit("cache-dit 3x compiled", compiled=True))
        return found


def measured(way: Way, loop: Loop, rounds: int) -> dict[str, Any]:
    """Prepare a way, run it twice unmeasured, and measure it; an error becomes the result.

    `cold` is the time until it could be measured; less for a way whose model another had compiled.
    """
    from .meter import measure

    if way.shared not in loop.made:
        afresh(loop)
    started = began = time.perf_counter()
    try:
        model = way.prepare(loop)
        for _ in range(2):  # compiles, captures, fills the allocator
            began = time.perf_counter()
            loop.run(model)
        cold = time.perf_counter() - started
        computed = way.computed(loop)
        long = time.perf_counter() - began > LONG
        found = measure(loop, model, 1 if long else rounds, computed)
        found |= {"steps": loop.steps, "computed_steps": len(computed), "cold": cold}
        return found | way.about(model)
    except Exception as failed:
        afresh(loop)  # what failed is not what others should go on with
        where = "".join(traceback.format_exception(failed)[-6:])
        return {"error": f"{type(failed).__name__}: {failed}"[:500], "where": where[-2000:]}
    finally:
        try:
            way.restore(loop)
        except Exception as failed:  # of a library that did not get as far as its hooks
            logging.getLogger(__name__).debug("restore: %s", failed)


def afresh(loop: Loop) -> None:
    """Give up what was compiled, and the memory that it held."""
    for model, _ in loop.made.values():
        ditcache.reset(model)
        ditcache.remove(model)
    loop.made.clear()
    torch._dynamo.reset()
    gc.collect()
    if loop.timesteps.is_cuda:
        torch.cuda.empty_cache()
