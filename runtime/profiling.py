"""From recordings to a profile: Gram matrices, guidance branches, and what the sampler does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..passes.clamp import clamp_of, guidance_of
from ..passes.clipped_run import ClippedRun, answer_of
from ..passes.guidance import named_conditional
from ..passes.measured_solver import EXACT, MeasuredSolver, draws_noise, measured
from ..passes.plan_parts import DENOISER
from ..passes.profile import Profile, ProfileError, RegionProfile
from ..passes.refit import Courses, Reference
from .recorder import LATENTS, Recording
from .stepped import STEPPED, WHAT_TO_DO

ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Relative precision of latents."""


def make_profile(
    recordings: list[Recording],
    signature: str,
    *,
    guidance: float | None = None,
    macs: int | None = None,
) -> Profile:
    """Average recordings of whole generations over one grid into a profile.

    The sampler's weights and the guidance scale are measured from the recorded latents where the
    sampler's update is linear in them; `guidance` overrides. Both branches of guidance in one batch
    (two halves that start from the same latents) count as two branches. Raises ProfileError when
    recordings are missing, broken, or of different grids, shapes or branches, or where the outputs
    are the next latents.
    """
    _check(recordings)
    for rec in recordings:
        rec.settle()
    first = recordings[0]
    read = _Reader(tuple(first.branches), in_halves(recordings))
    solver = _measure(recordings, read)
    if solver is not None and solver.update.replaces:
        raise ProfileError(f"{STEPPED}. {WHAT_TO_DO}")
    clipped, scale = None, None if solver is None else solver.guidance
    if solver is None or solver.residual > EXACT:
        clipped, told_scale = _clipped(recordings, read)
        if clipped is not None:  # what looked linear is not
            solver, scale = None, told_scale
    told = solver
    if read.halves and scale is None:
        # Which half is the conditional one cannot be told, and so no scale can be applied. What the
        # sampler does with both is known all the same, if the scale changes on the way.
        read = _Reader(tuple(first.branches), False)
        solver = _measure(recordings, read)
        told = solver or told
    branches, order = read.named(scale)
    seen = _latents(recordings, read)
    regions: list[RegionProfile] = []
    for name in first.seen:
        if name == LATENTS:
            continue
        grams: list[np.ndarray] = []
        for rec in recordings:
            z = read.table(rec, name)
            if z is None:
                raise ProfileError(
                    f"region {name!r}: no guidance branch was called at every step, so the outputs "
                    "cannot be compared; calibrate with guidance on at all steps"
                )
            z = z[list(order)]
            numel = rec.numel[name] / (2 if read.halves else 1)
            grams.append(np.einsum("asm,btm->abst", z, z) / numel)
        gram = np.mean(grams, axis=0)
        regions.append(RegionProfile(name, gram, first.shape[name], first.dtype[name]))
    if guidance is None and scale is not None:
        guidance = scale if order[0] == 0 else 1 - scale
    return Profile(
        signature=signature,
        timesteps=tuple(first.timesteps),
        branches=branches,
        samples=len(recordings),
        regions=tuple(regions),
        sketch=first.width,
        guidance=guidance,
        solver=told.weights if told else None,
        macs=macs,
        reference=_reference(recordings, read, solver),
        power=_power(recordings, read, told),
        adds_up=told is not None or seen is None,
        draws_noise=told is None and seen is not None and draws_noise(*seen),
        clipped=clipped,
    )


def in_halves(recordings: Sequence[Recording]) -> bool:
    """Whether guidance is batched: one branch, and both halves of the latents always equal."""
    for rec in recordings:
        x = rec.table(LATENTS)
        odd = rec.rows < 2 or rec.rows % 2 or len(rec.branches) != 1
        if odd or x is None or any(rows != rec.rows for rows in rec.apart.values()):
            return False
        half = x.shape[2] // 2
        if not np.array_equal(x[:, :, :half], x[:, :, half:]):
            return False
    return True


def courses(recordings: Sequence[Recording], like: Profile) -> Courses | None:
    """What replays went through, None where they cannot be laid beside the profile's reference."""
    if like.reference is None or not recordings:
        return None
    halves = like.reference.courses.y.shape[1] == 2 and len(recordings[0].branches) == 1
    read = _Reader(tuple(recordings[0].branches), halves)
    xs = [read.latents(rec) for rec in recordings]
    ys = [read.split(rec.partial(DENOISER)) for rec in recordings]
    # A plan so bad that its latents no longer look like one generation's leaves pieces of several.
    if any(x is None or x.shape != like.reference.courses.x.shape[1:] for x in xs):
        return None
    if len({y.shape for y in ys}) != 1:
        return None
    x, y = np.asarray(xs), np.asarray(ys)
    return Courses(x, y, like.reference.courses.rows) if y.ndim == 4 else None


@dataclass(frozen=True)
class _Reader:
    """How tables are read: by the branches that were told apart, or by the halves of a batch."""

    branches: tuple[str, ...]
    halves: bool

    def table(self, rec: Recording, region: str, *, single: bool = False) -> np.ndarray | None:
        """float64 [B, T, m], None if a (step, branch) is missing."""
        z = rec.table(region, single=single)
        return None if z is None else self.split(z)

    def latents(self, rec: Recording, *, single: bool = False) -> np.ndarray | None:
        """float64 [T, m]: all branches are called on the same latents."""
        z = self.table(rec, LATENTS, single=single)
        return None if z is None else z[0]

    def split(self, z: np.ndarray) -> np.ndarray:
        if not self.halves:
            return z
        half = z.shape[2] // 2
        return np.concatenate([z[:, :, :half], z[:, :, half:]])

    def named(self, scale: float | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The branches' names, and the order in which they are kept: the conditional one first.

        That is the one so named, else, where `scale` of the first is told, the larger one.
        """
        if self.halves:
            assert scale is not None
            return ("cond", "uncond"), (0, 1) if scale >= 0.5 else (1, 0)
        order = tuple(range(len(self.branches)))
        if len(order) == 2 and scale is not None:
            index = named_conditional(self.branches)
            if index == 1 or (index is None and scale < 0.5):
                order = (1, 0)
        return tuple(self.branches[i] for i in order), order


def _check(recordings: Sequence[Recording]) -> None:
    if not recordings:
        raise ProfileError("no generation was recorded: did generate() call the compiled model?")
    first = recordings[0]
    for i, rec in enumerate(recordings):
        if rec.broken:
            raise ProfileError(f"generation {i} cannot be used: {rec.broken}")
        if not rec.finite:
            raise ProfileError(
                f"generation {i} cannot be used: the model's outputs hold NaN or infinity; does it "
                "produce finite images without a cache?"
            )
        same = (rec.grid, rec.branches, rec.shape) == (first.grid, first.branches, first.shape)
        if not same:
            raise ProfileError(
                f"generation {i} differs from generation 0: {len(rec.grid)} steps, branches "
                f"{rec.branches}, shapes {rec.shape}; expected {len(first.grid)} steps, "
                f"{first.branches}, {first.shape}. Calibrate with equal shapes and step counts."
            )


def _measure(recordings: Sequence[Recording], read: _Reader) -> MeasuredSolver | None:
    """What the latents and outputs say about the sampler, None where they were not comparable."""
    both = _latents(recordings, read)
    return None if both is None else measured(*both, recordings[0].timesteps)


def _clipped(
    recordings: Sequence[Recording], read: _Reader
) -> tuple[ClippedRun | None, float | None]:
    """The courses of elements through a sampler that clips, and the scale of branch 0."""
    whole, single = _latents(recordings, read), _latents(recordings, read, single=True)
    if whole is None or single is None:
        return None, None
    x, y = (np.moveaxis(a, 0, -2).reshape(*a.shape[1:-1], -1) for a in single)
    rounding = ROUNDING.get(recordings[0].dtype[LATENTS], 0.0)
    scale = guidance_of(x, y, rounding) if len(y) == 2 else None
    if len(y) > 1 and scale is None:
        return None, None
    share = np.ones(1) if scale is None else np.array([scale, 1.0 - scale])
    seen = np.einsum("b,btm->tm", share, y)
    clamp = clamp_of(x, seen, rounding)
    if clamp is None:
        return None, None
    answer = answer_of(whole[0], np.einsum("b,nbtm->ntm", share, whole[1]), clamp)
    found = ClippedRun(clamp, x.astype(np.float32), seen.astype(np.float32), answer)
    return found.thinned(), scale


def _latents(
    recordings: Sequence[Recording], read: _Reader, *, single: bool = False
) -> tuple[np.ndarray, np.ndarray] | None:
    """Latents [n, T, m] and outputs [n, B, T, m], None where they cannot be laid side by side."""
    xs = [read.latents(rec, single=single) for rec in recordings]
    ys = [read.table(rec, DENOISER, single=single) for rec in recordings]
    if any(x is None for x in xs) or any(y is None for y in ys):
        return None
    x, y = np.asarray(xs), np.asarray(ys)
    return (x, y) if x.shape == (y.shape[0], y.shape[2], y.shape[3]) else None


def _power(
    recordings: Sequence[Recording], read: _Reader, solver: MeasuredSolver | None
) -> float | None:
    """Mean square of the last latents, where c' G c is not the size of what the model adds."""
    if solver is None or solver.update.answer is None:
        return None
    ends = [x[-1] for rec in recordings if (x := read.latents(rec)) is not None]
    size = recordings[0].numel[DENOISER] / (2 if read.halves else 1)
    power = float(np.mean([np.sum(x**2) for x in ends]) / size)
    return power if 0.0 < power < np.inf else None


def _reference(
    recordings: Sequence[Recording], read: _Reader, solver: MeasuredSolver | None
) -> Reference | None:
    if solver is None:
        return None
    first = recordings[0]
    x = np.asarray([read.latents(rec) for rec in recordings])
    y = np.asarray([read.table(rec, DENOISER) for rec in recordings])
    rows = max(first.rows // (2 if read.halves else 1), 1)
    return Reference.of(Courses(x, y, rows), solver.update)
