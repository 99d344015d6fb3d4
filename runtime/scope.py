"""What the caller says about where a call stands: `with generation(...)`, `with branch(...)`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any


class GenerationScope:
    """Identity of one explicit generation, and the grid that its caller announced (or None)."""

    def __init__(self, timesteps: tuple[float, ...] | None) -> None:
        self.timesteps = timesteps
        self._closers: dict[int, Callable[[Hashable], None]] = {}

    def on_close(self, owner: object, close: Callable[[Hashable], None]) -> None:
        """Call `close(self)` when the generation ends; once for each owner."""
        self._closers[id(owner)] = close

    def close(self) -> None:
        """The generation is over."""
        for close in self._closers.values():
            close(self)


_generation: ContextVar[GenerationScope | None] = ContextVar("ditcache_generation", default=None)
_branch: ContextVar[str | None] = ContextVar("ditcache_branch", default=None)


@contextmanager
def generation(timesteps: Sequence[float] | Any | None = None) -> Generator[None]:
    """One sampling loop: every call of a compiled model inside is one denoising step.

    `timesteps` (a sequence or 1-D tensor, in the order of the loop) tells the grid, in the units
    in which the model sees it; it is needed only for a model without a timestep input. Raises
    ValueError for what is no row of numbers, and for an empty or non-monotone grid.
    """
    grid = None
    if timesteps is not None:
        grid = _numbers(timesteps)
        steps = [b - a for a, b in pairwise(grid)]
        if not grid or not (all(s < 0 for s in steps) or all(s > 0 for s in steps)):
            raise ValueError(
                "generation(timesteps=...) expects a strictly monotone, non-empty grid, one value "
                f"per model call; got {_short(grid)}. Duplicates mean a predictor/corrector "
                "sampler, which cannot be cached: leave timesteps out to compute in full."
            )
    opened = GenerationScope(grid)
    token = _generation.set(opened)
    try:
        yield
    finally:
        _generation.reset(token)
        opened.close()


@contextmanager
def branch(name: str) -> Generator[None]:
    """Name the guidance branch of the calls inside, e.g. "cond" and "uncond".

    Raises TypeError for a name that is no text.
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"branch expects a name such as 'cond', got {name!r}")
    token = _branch.set(name)
    try:
        yield
    finally:
        _branch.reset(token)


def current_generation() -> GenerationScope | None:
    """The innermost explicit generation of this thread or task, None outside of any."""
    return _generation.get()


def current_branch() -> str | None:
    """The innermost branch name, None outside of any."""
    return _branch.get()


def enter_branch(name: str | None) -> Any:
    """Set the branch without a `with`; gives the token for `leave_branch`. For pipeline glue."""
    return _branch.set(name)


def leave_branch(token: Any) -> None:
    """Undo `enter_branch`."""
    _branch.reset(token)


def _numbers(timesteps: Any) -> tuple[float, ...]:
    listed = timesteps.tolist() if hasattr(timesteps, "tolist") else timesteps
    try:
        return tuple(float(t) for t in listed)
    except (TypeError, ValueError):
        shape = getattr(timesteps, "shape", None)
        what = f"{type(timesteps).__name__} {timesteps!r:.60}"
        raise ValueError(
            "generation(timesteps=...) expects the timesteps of the whole loop, a sequence or 1-D "
            f"tensor of numbers; got {what if shape is None else f'one of shape {tuple(shape)}'}"
        ) from None


def _short(grid: tuple[float, ...]) -> str:
    shown = ", ".join(f"{t:g}" for t in grid[:6])
    return f"[{shown}{', …' if len(grid) > 6 else ''}] ({len(grid)} values)"
