"""Foresight: where a call on a device stands, told by the order of calls and confirmed later.

The timestep and the latents of a call lie on the device, and reading them waits for it. Where the
grid of the generation is known, and every sign that costs no waiting agrees (the branch's name, the
order of branches within a step, the identity of the conditions, the shape of the latents), the
moment of the next call follows. What the device holds is read behind its back and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.clock import reach
from .late_reads import waits
from .seen import Latents, entries_of, kind_of, read_timestep
from .track import Foreseen, Track

LOST = "a step came in another order than foreseen"
MOST_TIMES = 4096  # entries of a timestep tensor that are read late


def packed(foreseen: Foreseen, latents: Any) -> Tensor | None:
    """f32, 1-D on the device: everything to be read of a call; None if that is nothing."""
    parts = [] if foreseen.time is None else [foreseen.time.detach().reshape(-1)]
    parts += [entries_of(latents)] if waits(latents) else []
    parts += [entries_of(value) for _, value in foreseen.unread]
    return torch.cat([p.to(torch.float32) for p in parts]) if parts else None


def denied(
    foreseen: Foreseen,
    read: Tensor,
    latents: Latents,
    alike: Sequence[Latents],
    grid: Sequence[float],
) -> str:
    """What is not as foreseen, now that it was read; "" if all is.

    `latents` is filled in; `alike` are those before it, of which one must lead to it.
    """
    if foreseen.time is not None:
        time, read = read[: foreseen.time.numel()], read[foreseen.time.numel() :]
        found = read_timestep(time.view(foreseen.time.shape))
        if found is None or not close_to(grid, foreseen.step, found):
            return f"timestep {found} at step {foreseen.step}, {foreseen.timestep:g} was foreseen"
    conditions = [seen.glimpse for seen, _ in foreseen.unread if seen.glimpse is not None]
    sizes = [len(g) for g in conditions]
    entries, *now = read.split([len(read) - sum(sizes), *sizes])
    for before, after in zip(conditions, now, strict=True):
        if not np.array_equal(before, after.numpy(), equal_nan=True):
            return "a condition changed"
    if len(entries):
        latents.fill(entries.numpy().copy())
    finite = bool(np.isfinite(entries.numpy()).all())  # if not, that is what there is to say
    if alike and finite and not any(before.leads_to(latents) for before in alike):
        return "other latents"
    return ""


def foresee(  # noqa: PLR0917
    track: Track,
    base: str,
    timestep: Any,
    latents: Any,
    conditions: Sequence[Any],
    names: tuple[str, ...],
) -> Foreseen | None:
    """Where the next call of a track must stand; None in any doubt, and at a first step."""
    if track.timestep is None or track.lost or not track.grid or not track.before:
        return None
    done = len(track.order)
    if track.order != track.before[:done]:
        return None
    if done < len(track.before):
        step, at, expected = track.step, track.timestep, track.before[done]
    else:
        step, expected = track.step + 1, track.before[0]
        if step >= len(track.grid):
            return None
        at = track.grid[step]
    called, branch = expected
    before, known = track.latents.get(branch), track.conditions.get(branch)
    if step == 0 or called != base or before is None or before.kind != kind_of(latents):
        return None
    if known is None or not known.surely(conditions, names):
        return None
    time = timestep if waits(timestep) else None
    if time is not None and (time.numel() > MOST_TIMES or not _same_device(time, latents)):
        return None
    pairs = zip(known.seen, conditions, strict=True)
    unread = tuple((seen, value) for seen, value in pairs if seen.unread)
    if any(not _same_device(value, latents) for _, value in unread):
        return None
    return Foreseen(branch, step, at, time, unread)


def close_to(grid: Sequence[float], index: int, timestep: float) -> bool:
    """Whether a timestep is that of a step of the grid, and of no other one."""
    return abs(grid[index] - timestep) <= reach(grid, index)


def snapped(grid: Sequence[float], step: int, timestep: float) -> float:
    """A timestep as the grid has it, if it is that of `step` or the one after."""
    steps = (i for i in (step, step + 1) if 0 <= i < len(grid))
    return next((grid[i] for i in steps if close_to(grid, i, timestep)), timestep)


def _same_device(one: Tensor, other: Any) -> bool:
    return not isinstance(other, Tensor) or one.device == other.device
