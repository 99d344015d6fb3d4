"""The ways to run a model: as it is, compiled, cached by ditcache."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import ditcache
import torch

from .loop import Call, Loop

NEVER = 1e6


@dataclass
class Way(ABC):
    """How a loop's model is called. `prepare` may run the loop; `restore` undoes it."""

    name: str
    compiled: bool = False

    @property
    def warm(self) -> int | None:
        """Steps of a loop after which nothing is new to it; None: only whole loops will do."""
        return None

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


class Uncached(Way):
    """Each call is like any other."""

    @property
    def warm(self) -> int | None:
        return 3


class Eager(Uncached):
    def prepare(self, loop: Loop) -> Call:
        return loop.module


@dataclass
class Compiled(Uncached):
    mode: str | None = None
    inner: str = "inductor"

    def prepare(self, loop: Loop) -> Call:
        if self.mode is None:
            return torch.compile(loop.module, backend=self.inner)
        return torch.compile(loop.module, mode=self.mode)


@dataclass
class Regional(Uncached):
    """diffusers' regional compilation: each kind of block by itself."""

    inner: str = "inductor"

    def prepare(self, loop: Loop) -> Call:
        loop.module.compile_repeated_blocks(backend=self.inner)  # pyright: ignore[reportCallIssue]
        return loop.module

    def restore(self, loop: Loop) -> None:
        for part in loop.module.modules():
            part._compiled_call_impl = None


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
            "late_waits": found.late_waits,
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
