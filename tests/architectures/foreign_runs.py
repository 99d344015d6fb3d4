"""Foreign models at work: a sampler around each, and what a plan must give, by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ditcache
import torch
from ditcache.passes.ir import kind_of, placeholders
from ditcache.passes.names import argument_name
from ditcache.runtime.session import session_of
from torch import Tensor, nn

from .outside import planned_by_hand

STEPS = 8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Foreign:
    """A model, the shape of its latents, how it is called with (x, t), its inputs' true kinds."""

    cls: type[nn.Module]
    shape: tuple[int, ...]
    call: Callable[[Any, Tensor, Tensor], Tensor]
    kinds: dict[str, str]
    times: tuple[float, float] = (1.0, 0.0)


def generate(case: Foreign, model: nn.Module, seed: int = 0) -> Tensor:
    start, end = case.times
    grid = torch.linspace(start, end, STEPS + 1)
    dtype = next(model.parameters()).dtype
    x = noise(*case.shape, seed=seed).to(dtype) * start
    with torch.no_grad():
        for i in range(STEPS):
            x = x + (grid[i + 1] - grid[i]).to(dtype) * case.call(model, x, grid[i])
    return x


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(
        model, backend="ditcache", options={"inner": "eager", "remember": False, **options}
    )


def kinds(model: nn.Module, graph: int = 0) -> dict[str, str]:
    session = session_of(model)
    assert session is not None
    inputs = placeholders(session.executors[graph].graph.graph)
    return {argument_name(n): str(kind_of(n)) for n in inputs}


def is_planned(case: Foreign, model: nn.Module, made: Any) -> None:
    """The third generation runs under the plan made from two, and equals the plan by hand."""
    ours = generate(case, made, 2)
    session = session_of(model)
    assert session is not None
    with planned_by_hand(model, session.plans[0], branches=1):
        theirs = generate(case, model, 2)
    tolerance = max(1e-5, 4 * torch.finfo(ours.dtype).eps)
    assert (ours - theirs).norm() <= tolerance * theirs.norm()
    summary = ditcache.summary(made)
    assert (summary.forecast, summary.fallbacks, summary.uncached) == (4, {}, ())
    assert (ours - generate(case, model, 2)).norm() > 1e-6 * ours.norm(), "the plan did nothing"
