"""The ops of caching, each with its reference meaning in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import has_side_effect

from ..kernels.clock import Dial, Grid, clock_reference
from ..kernels.forecast import forecast_reference
from ..kernels.probe import Verdict, verdict_reference


def cache_forecast(
    slot: Tensor, weights: Tensor, base: Tensor | None = None, at: Tensor | None = None
) -> Tensor:
    """Linear combination of the last K values: sum_k weights[k] * slot[k], in fp32, cast back.

    `slot` is [K, *shape] newest first, `weights` f32[K]; the result is [*shape] in slot's dtype.
    `base` [*shape] is added before it is cast: the live-in of a region whose delta is forecast.
    With `at`, which a clock gives, the weights are the row of f32[steps, K] that it stands at.
    """
    return forecast_reference(slot, weights, row=None if at is None else at[:1], add=base)


@has_side_effect
def cache_write(slot: Tensor, value: Tensor) -> Tensor:
    """Push `value` [*shape] into `slot` [K, *shape] in place as its newest entry; gives `value`."""
    slot.copy_(torch.cat([value.unsqueeze(0).to(slot.dtype), slot[:-1]]))
    return value


def cache_probe(value: Tensor, reference: Tensor) -> Tensor:
    """How far a value is from a reference slot [1, *shape]: f32[2], mean |value - r| and mean |r|.

    Their ratio is the relative L1 distance of TeaCache and First Block Cache.
    """
    last = reference[0].to(torch.float32)
    moved = (value.to(torch.float32) - last).abs().mean()
    return torch.stack([moved, last.abs().mean()])


def cache_decide(threshold: float, *probes: Tensor) -> bool:
    """Whether to forecast: every probe below `threshold` times its reference.

    The meaning for one step alone. A rule that accumulates or counts (most do) takes the probes'
    numbers to the host and decides there: the predicate is `i1 host probe`. One that is a limit on
    one distance can be a `cache_below` instead.
    """
    return all(bool(probe[0] < threshold * probe[1]) for probe in probes)


@has_side_effect
def cache_below(
    probe: Tensor, limit: Tensor, flag: Tensor, running: Tensor, *, accumulate: bool = False
) -> bool:
    """Whether to forecast, decided on the device: the probe's ratio is below `limit`, f32[1].

    probe: f32[2], a `cache_probe`'s; flag: i32[1], 1 afterwards where it is not below; running:
    f32[4], what probes have said so far. With `accumulate` the sum of the ratios since the flag was
    last set is compared. Its meaning is `kernels.probe.verdict_reference`.
    """
    verdict_reference(probe, limit, Verdict(flag, running), accumulate=accumulate, sticky=False)
    return not bool(flag)


def cache_cond(
    pred: bool,
    hit: Callable[..., tuple[Tensor, ...]],
    miss: Callable[..., tuple[Tensor, ...]],
    operands: tuple[Any, ...],
) -> tuple[Tensor, ...]:
    """Run `hit` where the predicate holds, else `miss`, on the same operands; gives live-outs."""
    return hit(*operands) if pred else miss(*operands)


@has_side_effect
def cache_clock(
    timestep: Tensor, times: Tensor, within: Tensor, dial: Tensor, flag: Tensor
) -> Tensor:
    """Move the device's clock to the step that a timestep tells; gives the `dial`, i32[4].

    times, within: f32[steps], the plan's grid and how far a timestep may lie from each; flag:
    i32[1], the guard's. Its meaning is `kernels.clock.clock_reference`.
    """
    clock_reference(timestep, Grid(times, within), Dial(dial), flag)
    return dial


def cache_holds(at: Tensor) -> bool:
    """Whether the plan holds at the step at which a clock stands: it is known, no flag was set."""
    return not bool(Dial(at).left)


def cache_prologue(
    prologue: Callable[..., tuple[Tensor, ...]], operands: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Run a prologue inside of a step, which else runs before it; gives its outputs."""
    return prologue(*operands)


CACHE_OPS = frozenset(
    {
        cache_forecast,
        cache_write,
        cache_probe,
        cache_decide,
        cache_below,
        cache_cond,
        cache_clock,
        cache_holds,
        cache_prologue,
    }
)
