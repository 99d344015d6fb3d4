"""A strong baseline without any cache: the same steps' worth of work by a two-step solver."""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteSchedulerOutput,
)
from torch import Tensor

Solver = Literal["euler", "ab2"]


class AdamsBashforth2(FlowMatchEulerDiscreteScheduler):
    """Flow matching by the two-step Adams-Bashforth rule for uneven steps; Euler at the first.

    x += dt ((1 + r / 2) v - r / 2 v_before), r = dt / dt_before (Hairer, Norsett, Wanner: Solving
    Ordinary Differential Equations I, III.5).
    """

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Take one step; arguments and result are those of the Euler scheduler."""
        if self.step_index is None:  # a new generation
            self._init_step_index(timestep)
            self._before: tuple[Tensor, float] | None = None
        sigmas: Any = self.sigmas
        now: Any = self.step_index
        dt = float(sigmas[now + 1] - sigmas[now])
        output: Any = model_output
        if self._before is not None:
            velocity, dt_before = self._before
            half = dt / dt_before / 2
            output = (1 + half) * model_output - half * velocity
        self._before = (model_output, dt)
        state: Any = sample
        return super().step(output, timestep, state, *args, **kwargs)


class EvenAdamsBashforth2:
    """The same rule for equal steps: turns each velocity into the one that Euler is to use."""

    def __init__(self) -> None:
        self._before: Tensor | None = None

    def __call__(self, velocity: Tensor) -> Tensor:
        """Combine a velocity [N, ...] with the one before it."""
        before, self._before = self._before, velocity
        return velocity if before is None else torch.lerp(before, velocity, 1.5)


class EulerAdamsBashforth2(EulerDiscreteScheduler):
    """The same rule on the sigmas of diffusers' Euler scheduler, whose every step is dsigma dx.

    The derivative is read off the Euler step, so that it holds for each kind of prediction.
    """

    def step(
        self, model_output: Tensor, timestep: Any, sample: Any, *args: Any, **kwargs: Any
    ) -> EulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Take one step; arguments and result are those of the Euler scheduler."""
        now: Any = self.step_index or 0
        if now == 0:  # a new generation
            self._before: tuple[Tensor, float] | None = None
        dt = float(self.sigmas[now + 1] - self.sigmas[now])
        whole = kwargs.pop("return_dict", True)
        made = super().step(model_output, timestep, sample, *args, return_dict=False, **kwargs)
        move = made[0].float() - sample.float()
        slope, before = move / dt, self._before
        self._before = (slope, dt)
        if before is not None:
            move = torch.lerp(before[0] * dt, move, 1 + dt / before[1] / 2)
        result = (sample.float() + move).to(made[0].dtype)
        return EulerDiscreteSchedulerOutput(prev_sample=result) if whole else (result,)
