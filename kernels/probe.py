"""Probe a value: how far it is from a reference or a forecast, decided where it was computed.

Two kernels: programs of a number that depends on the size alone each add up a part, then one
program adds the parts in order, compares with the limit, and sets a flag on the device. The host
waits for nothing, and the same numbers give the same flag every time.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .forecast import forecast_reference
from .formats import SCALE_BLOCK, Packed, format_of
from .launch import (
    launches,
    launching_on,
    needs_device,
    needs_fp8,
    needs_history,
    needs_values,
    needs_weights,
)

BLOCK = 1024
PARTS = 1024
"""Most parts that are added up apart."""
Norm = Literal["l1", "l2"]


@dataclass(frozen=True)
class Verdict:
    """What probes leave on a device; made by `verdict_on`, read by whoever decides.

    flag: i32[1], 1 where the limit was passed. running: f32[4], the relative distance last seen,
    the largest, their sum since the flag was last set (or since `clear`), and how many there were.
    """

    flag: Tensor
    running: Tensor

    def clear(self) -> None:
        """Forget everything, in place."""
        self.flag.zero_()
        self.running.zero_()


def verdict_on(device: torch.device | str) -> Verdict:
    """A verdict of which nothing is known yet."""
    flag = torch.zeros(1, dtype=torch.int32, device=device)
    return Verdict(flag, torch.zeros(4, dtype=torch.float32, device=device))


def distance_reference(
    value: Tensor,
    reference: Tensor | Packed,
    *,
    weights: Tensor | None = None,
    norm: Norm = "l1",
    relative_to: Literal["reference", "value"] = "reference",
) -> Tensor:
    """The meaning of the distance: f32[2], how far value is from the reference, and the size.

    r = sum_k weights[k] * reference[k] in fp32, of one entry of weight one where there are none.
    "l1": mean |value - r| and mean |r| (or of the value); "l2": the roots of the mean squares.
    """
    data, scales = (
        (reference.data, reference.scales) if isinstance(reference, Packed) else (reference, None)
    )
    ring = Packed(data, scales, torch.float32)
    r = ring.entry(0) if weights is None else forecast_reference(ring, weights)
    v = value.to(torch.float32)
    pair = (v - r).flatten(), (r if relative_to == "reference" else v).flatten()
    if norm == "l1":
        return torch.stack([x.abs().mean() for x in pair])
    return torch.stack([x.square().mean().sqrt() for x in pair])


def verdict_reference(
    figures: Tensor, limit: Tensor, verdict: Verdict, *, accumulate: bool, sticky: bool
) -> None:
    """The meaning of the verdict, in place.

    relative = figures[0] / figures[1], flag = not (relative < limit), with `accumulate` of their
    sum. `sticky`: a flag stays set.
    """
    relative = figures[0] / figures[1]
    _, worst, total, count = verdict.running
    counted = total + relative if accumulate else relative
    beyond = ~(counted < limit.reshape(()))
    total = torch.where(beyond, 0.0, total + relative)
    worst = torch.where(relative > worst, relative, worst)
    verdict.running.copy_(torch.stack([relative, worst, total, count + 1.0]))
    verdict.flag.copy_(verdict.flag | beyond if sticky else beyond)


def probe(
    value: Tensor,
    reference: Tensor | Packed,
    *,
    weights: Tensor | None = None,
    norm: Norm = "l1",
    relative_to: Literal["reference", "value"] = "reference",
    limit: Tensor | None = None,
    verdict: Verdict | None = None,
    accumulate: bool = False,
    sticky: bool = False,
) -> Tensor:
    """Relative distance of a value to a reference or to a forecast of it, in one pass over memory.

    value: [*shape], fp32/bf16/fp16; one that is not contiguous is copied first. reference:
    [K, *shape] contiguous, a slot's ring (packed or not). Without weights K is 1 and the entry
    itself is the reference; with f32[K] it is their weighted sum, which is never written out. Gives
    f32[2]: mean |value - r| and mean |r|, for norm "l2" the roots of the mean squares; with
    relative_to "value" the second is the value's.

    With a `verdict` their ratio is compared with `limit`, f32[1]: the flag is set where it is not
    below, so a ratio that is not a number sets it.
    `accumulate` compares the sum of the ratios since the flag was last set (TeaCache's rule) and
    starts the sum anew there; `sticky` never takes a flag back (a guard's). Raises ValueError for
    what the kernels do not take.
    """
    _check(value, reference, weights, limit)
    if norm not in ("l1", "l2"):
        raise ValueError(f"probe knows the norms 'l1' and 'l2', got {norm!r}")
    if relative_to not in ("reference", "value"):
        raise ValueError(f"probe is relative to 'reference' or 'value', got {relative_to!r}")
    if (limit is None) != (verdict is None):
        raise ValueError("probe needs a limit and a verdict together")
    if launches(value):
        return _probe_triton(
            value,
            reference,
            weights=weights,
            norm=norm,
            relative_to=relative_to,
            limit=limit,
            verdict=verdict,
            accumulate=accumulate,
            sticky=sticky,
        )
    figures = distance_reference(
        value, reference, weights=weights, norm=norm, relative_to=relative_to
    )
    if limit is not None and verdict is not None:
        verdict_reference(figures, limit, verdict, accumulate=accumulate, sticky=sticky)
    return figures


def _check(
    value: Tensor,
    reference: Tensor | Packed,
    weights: Tensor | None,
    limit: Tensor | None,
) -> None:
    """Raise ValueError for tensors that the kernels do not take."""
    data = reference.data if isinstance(reference, Packed) else reference
    needs_values("probe", "value", value)
    needs_device("probe", "the reference", data, value.device)
    if data.shape[1:] != value.shape:
        got, want = tuple(data.shape[1:]), tuple(value.shape)
        raise ValueError(f"probe needs entries of the value's shape {want}, got {got}")
    if not data.is_contiguous():
        raise ValueError(f"probe takes a contiguous reference, got strides {data.stride()}")
    needs_history("probe", len(data))
    if isinstance(reference, Packed):
        format_of(data, reference.scales)
        needs_fp8(data.dtype, data.device)
    if weights is None:
        if len(data) != 1:
            raise ValueError(f"probe needs weights for a reference of {len(data)} entries")
    else:
        needs_weights("probe", weights, None, len(data))
        needs_device("probe", "weights", weights, value.device)
    if limit is not None:
        if limit.dtype != torch.float32 or limit.shape != (1,):
            got = f"{limit.dtype}{list(limit.shape)}"
            raise ValueError(f"probe needs a limit f32[1], got {got}")
        needs_device("probe", "limit", limit, value.device)


def _probe_triton(
    value: Tensor,
    reference: Tensor | Packed,
    *,
    weights: Tensor | None,
    norm: Norm,
    relative_to: str,
    limit: Tensor | None,
    verdict: Verdict | None,
    accumulate: bool,
    sticky: bool,
) -> Tensor:
    value = value.contiguous()
    data, scales = (
        (reference.data, reference.scales) if isinstance(reference, Packed) else (reference, None)
    )
    n = value.numel()
    count = min(-(-n // BLOCK), PARTS)
    parts = torch.empty(2, count, dtype=torch.float32, device=value.device)
    figures = torch.empty(2, dtype=torch.float32, device=value.device)
    with launching_on(value.device):
        distance_kernel()[(count,)](
            value,
            data,
            scales,
            weights,
            parts,
            n,
            K=len(data),
            SQUARE=norm == "l2",
            OF_VALUE=relative_to == "value",
            SCALE_BLOCK=SCALE_BLOCK,
            RUNS=BLOCK // SCALE_BLOCK,
            ROUNDS=-(-n // (BLOCK * count)),
        )
        verdict_kernel()[(1,)](
            parts,
            figures,
            limit,
            None if verdict is None else verdict.flag,
            None if verdict is None else verdict.running,
            float(n),
            count,
            SQUARE=norm == "l2",
            ACCUMULATE=accumulate,
            STICKY=sticky,
            PARTS=PARTS,
        )
    return figures


def decide(
    figures: Tensor,
    limit: Tensor,
    verdict: Verdict,
    *,
    accumulate: bool = False,
    sticky: bool = False,
) -> None:
    """Compare a distance that was probed before with a limit, as `probe` does in the same call.

    figures: f32[2], a probe's; limit: f32[1]. One program on CUDA; the host waits for nothing.
    """
    needs_device("decide", "the limit", limit, figures.device)
    if not launches(figures):
        verdict_reference(figures, limit, verdict, accumulate=accumulate, sticky=sticky)
        return
    with launching_on(figures.device):
        verdict_kernel()[(1,)](  # the figures are the sums of a single part, of one number
            figures,
            figures,
            limit,
            verdict.flag,
            verdict.running,
            1.0,
            1,
            SQUARE=False,
            ACCUMULATE=accumulate,
            STICKY=sticky,
            PARTS=PARTS,
        )


@functools.cache
def distance_kernel() -> Any:
    """The first kernel. Built on first use: importing triton costs a CPU-only process nothing."""
    from ._probe_kernel import distance_kernel as kernel

    return kernel


@functools.cache
def verdict_kernel() -> Any:
    """The second kernel, built on first use."""
    from ._probe_kernel import verdict_kernel as kernel

    return kernel
