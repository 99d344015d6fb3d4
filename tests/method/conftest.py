"""Smooth synthetic outputs and profiles made from them, for the tests of the method."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from ditcache.passes.profile import Profile, RegionProfile


def shifted_grid(steps: int, shift: float = 3.0) -> tuple[float, ...]:
    sigma = np.linspace(1.0, 0.0, steps + 1)[:-1]
    return tuple((shift * sigma / (1 + (shift - 1) * sigma)).tolist())


def outputs(
    timesteps: tuple[float, ...], samples: int, seed: int = 0, size: int = 300
) -> np.ndarray:
    """[samples, T, size]: a constant, slow waves, and detail that appears near the data."""
    world, rng = np.random.default_rng(1234), np.random.default_rng(seed)
    x = np.asarray(timesteps)[:, None]
    speed, amount = world.uniform(0.5, 5.0, size), world.uniform(0.2, 1.0, size)
    phase = rng.uniform(0, 2 * np.pi, (samples, 1, size)) * 0.3 + world.uniform(0, 6, size)
    detail = rng.normal(size=(samples, 1, size)) * np.exp(-x / 0.15)
    return amount + np.cos(speed * x + phase) / speed + 0.2 * detail


def gram(y: np.ndarray) -> np.ndarray:
    """[T, T] mean inner products of [samples, T, size]."""
    return np.einsum("nsm,ntm->st", y, y) / (y.shape[0] * y.shape[2])


def profile(steps: int = 50, samples: int = 4, seed: int = 0, **changes: object) -> Profile:
    timesteps = shifted_grid(steps)
    g = gram(outputs(timesteps, samples, seed))
    made = {
        "signature": "synthetic",
        "timesteps": timesteps,
        "branches": ("",),
        "samples": samples,
        "regions": (RegionProfile("denoiser", g[None, None], (1, 300), "float32"),),
    }
    return Profile(**(made | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def synthetic() -> SimpleNamespace:
    """`grid(steps)`, `outputs(grid, samples, seed)`, `gram(outputs)`, `profile(steps, ...)`."""
    made: dict[str, Callable[..., object]] = {
        "grid": shifted_grid,
        "outputs": outputs,
        "gram": gram,
        "profile": profile,
    }
    return SimpleNamespace(**made)
