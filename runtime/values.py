"""What a step gave: whether it is finite, what shape it has, and its parts by region."""

from __future__ import annotations

import cmath
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from ..passes.ir import StepGraph, output_node
from .generation_state import Sample
from .late_reads import waits

_SUM = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def all_finite(value: Any) -> bool:
    """Whether every floating-point tensor in a nested result is finite. Waits for the device.

    Looks at the sum: NaN and infinity get into it, and one pass over memory is all it costs. A sum
    that overflows by itself passes for infinite, which costs one full step.
    """
    if isinstance(value, Tensor):
        if not (value.is_floating_point() or value.is_complex()):
            return True
        return cmath.isfinite(value.sum(dtype=_SUM.get(value.dtype)).item())
    if isinstance(value, (tuple, list)):
        return all(all_finite(v) for v in value)
    return True


def finite_flag(value: Any) -> Tensor | None:
    """`all_finite` as f32[1] on the device, 1 or 0, for a late read; None if nothing can be NaN.

    Of values on several devices on that of the first.
    """
    sums = [v.sum(dtype=_SUM.get(v.dtype)).isfinite() for v in _floats(value)]
    if not sums:
        return None
    return torch.stack([s.to(sums[0].device) for s in sums]).all().to(torch.float32).reshape(1)


def _floats(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() or value.is_complex() else []
    return [t for v in value for t in _floats(v)] if isinstance(value, (tuple, list)) else []


def any_waits(value: Any) -> bool:
    """Whether `all_finite` would wait for a device."""
    return any(waits(v) for v in _floats(value))


def denoised_indices(graph: StepGraph) -> tuple[int, ...]:
    """Which of the step's outputs the denoiser gives; none where it gives anything else, too."""
    given = output_node(graph.graph).args[0]
    flat = given if isinstance(given, (tuple, list)) else (given,)
    names = [n.name if isinstance(n, fx.Node) else "" for n in flat]
    outs = graph.region("denoiser").live_outs if graph.regions else ()
    return tuple(names.index(o) for o in outs) if set(outs) <= set(names) else ()


def sample(outputs: Any, places: Sequence[int]) -> Sample | None:
    """What the denoiser gave, as a recording of it would say; `places` are its outputs."""
    given = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    parts = [cast(Tensor, given[i]) for i in places]
    if not parts:
        return None
    shape = tuple(parts[0].shape) if len(parts) == 1 else (sum(p.numel() for p in parts),)
    return Sample(shape, str(parts[0].dtype).removeprefix("torch."))


def main_of(outputs: Any, places: Sequence[int], latents: Any) -> Tensor | None:
    """Of several outputs of the denoiser the one that is shaped like the latents.

    None where that does not tell it from the others. What else a model gives (features, a loss) has
    sizes of its own and takes no part in what the sampler does.
    """
    if len(places) < 2 or not isinstance(latents, Tensor):
        return None
    given = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    alike = [t for i in places if (t := cast(Tensor, given[i])).shape == latents.shape]
    return alike[0] if len(alike) == 1 else None


def denoised(outputs: Any, places: Sequence[int]) -> dict[str, Tensor]:
    """What the denoiser gave, as a region's value: several outputs become one flat tensor."""
    given = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    named = {str(i): cast(Tensor, given[i]) for i in places}
    return by_region(named, dict.fromkeys(named, "denoiser"))


def by_region(values: Mapping[str, Tensor], region_of: Mapping[str, str]) -> dict[str, Tensor]:
    """Written values by region; several live-outs of one region become one flat tensor."""
    groups: dict[str, list[Tensor]] = {}
    for slot, value in values.items():
        groups.setdefault(region_of[slot], []).append(value)
    return {
        region: parts[0] if len(parts) == 1 else torch.cat([p.reshape(-1) for p in parts])
        for region, parts in groups.items()
    }
