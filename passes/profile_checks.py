"""What must hold of a profile, whether just made or read from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .plan_format import is_monotone
from .profile_file import ProfileError

if TYPE_CHECKING:
    from .profile import Profile


def check(profile: Profile) -> None:
    """Raise `ProfileError` for the first thing in a profile that is unsound."""
    steps, branches = len(profile.timesteps), len(profile.branches)
    grid = np.asarray(profile.timesteps, dtype=np.float64)
    if steps < 3:
        raise ProfileError(f"a profile needs at least 3 steps, got {steps}; sample with more steps")
    if not is_monotone(grid):
        raise ProfileError(
            "timesteps must be finite and strictly monotone; samplers that call the model "
            f"several times a step (Heun) cannot be profiled. Got {profile.timesteps}"
        )
    if profile.samples < 1:
        raise ProfileError(f"a profile needs at least one generation, got {profile.samples}")
    if branches < 1 or not profile.regions:
        raise ProfileError("a profile needs at least one branch and one region")
    names = [region.region for region in profile.regions]
    if len(set(names)) != len(names):
        raise ProfileError(f"a region is recorded twice in {names}")
    for region in profile.regions:
        want, got = (branches, branches, steps, steps), region.gram.shape
        if got != want or region.gram.dtype != np.float64:
            raise ProfileError(
                f"region {region.region!r}: expected a float64 gram of shape {want} (branches, "
                f"branches, steps, steps), got {region.gram.dtype} {got}"
            )
        if not np.isfinite(region.gram).all():
            raise ProfileError(
                f"region {region.region!r}: the recorded outputs hold NaN or infinity; does the "
                "model produce finite images without a cache?"
            )
    solver = profile.solver
    if solver is not None and (solver.shape != (steps,) or not np.isfinite(solver).all()):
        raise ProfileError(f"solver weights must be {steps} finite numbers, got {solver}")
    if profile.guidance is not None and not np.isfinite(profile.guidance):
        raise ProfileError(f"guidance must be finite or None, got {profile.guidance}")
    _check_clipped(profile)
    if profile.power is not None and not 0.0 < profile.power < np.inf:
        raise ProfileError(f"power must be above 0 and finite, or None, got {profile.power}")


def _check_clipped(profile: Profile) -> None:
    steps, run = len(profile.timesteps), profile.clipped
    if run is None:
        return
    shapes = (run.clamp.rows.shape, run.x.shape, run.y.shape, run.answer.shape)
    many = run.x.shape[-1]
    if shapes != ((steps, 5), (steps, many), (steps, many), (steps,)) or not many:
        raise ProfileError(f"elements of {steps} steps that do not fit together: shapes {shapes}")
    if not all(np.isfinite(a).all() for a in (run.x, run.y, run.answer, run.clamp.rows)):
        raise ProfileError("the recorded elements hold NaN or infinity")
