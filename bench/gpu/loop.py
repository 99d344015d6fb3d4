"""A model with random weights and the loop that a sampler would run around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ditcache
import torch
from ditcache.models import zoo
from torch import Tensor, nn

LATENTS = ("hidden_states", "sample")
SHRINK = 0.1  # of the output, so that random weights do not blow the latents up

Call = Callable[..., Any]


@dataclass(frozen=True)
class Loop:
    """A model, the arguments of one call, and the timesteps to call it at.

    `timesteps` are as the model sees them, f32[T] on the model's device, as schedulers have them.
    `made` is for ways that one compiled model serves: what it is, by what was asked for.
    """

    name: str
    module: nn.Module
    kwargs: dict[str, Any]
    timesteps: Tensor
    made: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    @property
    def latents(self) -> str:
        """The argument that the sampler integrates."""
        return next(key for key in LATENTS if key in self.kwargs)

    @torch.no_grad()
    def run(
        self,
        model: Call,
        each: Callable[[int, Call], Any] | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """One generation by Euler's method, or its first `steps`; gives the latents then.

        `each(step, call)` may measure around each call.
        """
        x = self.kwargs[self.latents]
        like = self.kwargs["timestep"]
        around = each or (lambda _, call: call())
        with self.scope():
            for i in range(self.steps if steps is None else min(steps, self.steps)):
                t = self.timesteps[i].to(like.dtype).expand(like.shape)
                now = {**self.kwargs, self.latents: x, "timestep": t}
                out = around(i, lambda now=now: model(**now))
                x = euler(x, out[0] if isinstance(out, tuple) else out.sample, self.steps)
        return x

    @contextmanager
    def scope(self) -> Generator[None]:
        """What a pipeline says around its calls: the generation, and diffusers' branch name."""
        inner = getattr(self.module, "cache_context", None)
        if getattr(self.module, "is_cache_enabled", False):  # as pipelines do between generations
            self.module._reset_stateful_cache()  # pyright: ignore[reportCallIssue]
        with ditcache.generation(timesteps=self.grid()):
            if inner is None:
                yield
            else:
                with inner("cond"):
                    yield

    def grid(self) -> list[float]:
        """The timesteps on the host, in the dtype in which the model gets them."""
        return self.timesteps.to(self.kwargs["timestep"].dtype).tolist()


def euler(x: Tensor, out: Tensor, steps: int) -> Tensor:
    """The next latents; of an output of other channels the part that the latents have, and back.

    DiT also gives a variance, and SVD's latents come with those of the image, which stay.
    """
    dim = next((d for d in range(x.dim()) if x.shape[d] != out.shape[d]), None)
    if dim is None:
        return x + out * (SHRINK / steps)
    shared = min(x.shape[dim], out.shape[dim])
    moved = x.clone()
    moved.narrow(dim, 0, shared).add_(out.narrow(dim, 0, shared), alpha=SHRINK / steps)
    return moved


def load(
    name: str, steps: int, top: float, device: torch.device, size: dict[str, int | None]
) -> Loop:
    """A model of the zoo with random bf16 weights, made on the device; `size` as in `zoo.build`.

    `top` is the timestep of pure noise in the model's units.
    """
    height, width, frames = (size.get(key) for key in ("height", "width", "frames"))
    built = zoo.build(name, device=device, height=height, width=width, frames=frames)
    kwargs = {k: v for k, v in built.kwargs.items() if _takes(built.module, k)}
    return Loop(name, built.module, kwargs, torch.linspace(top, top / steps, steps, device=device))


def _takes(module: nn.Module, key: str) -> bool:
    parameters = inspect.signature(module.forward).parameters
    return key in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
