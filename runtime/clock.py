"""The clock: which generation, which step, which guidance branch a call of the model belongs to."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import scope

MAX_TRACKS = 16  # threads that came and went; explicit generations are dropped at their end


@dataclass(frozen=True)
class Moment:
    """Where one call stands. `track` is a thread or an explicit generation, `serial` counts the
    generations in it, `step` the denoising steps from 0; `timestep` is as the model saw it.
    """

    track: Hashable
    serial: int
    branch: str
    step: int
    timestep: float
    starts: bool  # the first call of its generation


@dataclass
class Track:
    """One stream of generations, and what the last calls looked like."""

    serial: int = -1
    step: int = -1
    timestep: float | None = None
    direction: int = 0
    called: dict[str, Seen] = field(default_factory=dict[str, "Seen"])  # in this step
    conditions: dict[str, tuple[Seen, ...]] = field(default_factory=dict[str, "tuple[Seen, ...]"])


class Seen:
    """A value as it was when seen: tells later whether another one is the same.

    Keeps the tensor alive, so that an address cannot be taken for another tensor's; a tensor that
    was written to since is no longer the same.
    """

    __slots__ = ("value", "version")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.version = version_of(value)

    def same(self, other: Any) -> bool:
        """Whether `other` holds what was seen: the same object unchanged, or equal values."""
        mine = self.value
        if not isinstance(mine, Tensor) or not isinstance(other, Tensor):
            return type(mine) is type(other) and bool(mine == other)
        if version_of(mine) != self.version:
            return False
        if mine is other:
            return True
        if mine.shape != other.shape or mine.dtype != other.dtype or mine.device != other.device:
            return False
        return mine.data_ptr() == other.data_ptr() or torch.equal(mine, other)


def version_of(value: Any) -> int:
    """The in-place version counter; inference tensors have none and count as unchanged."""
    if not isinstance(value, Tensor) or value.is_inference():
        return 0
    return value._version


class Clock:
    """Tells the moment of each call from scopes, timesteps and the identity of the inputs.

    A step begins where the timestep moves on in the generation's direction; a generation where it
    jumps back, where a branch is called twice at one timestep with other latents, or where the
    conditions of a branch change. Two calls at one timestep on the same latents are guidance
    branches. When the calls do not add up, the clock starts a new generation: the plan then finds
    no history, and the step is computed in full.
    """

    def __init__(self) -> None:
        self._tracks: OrderedDict[Hashable, Track] = OrderedDict()
        self._lock = threading.Lock()

    def tick(self, timestep: float | None, latents: Any, conditions: Sequence[Any]) -> Moment | None:
        """The moment of a call; None where neither input nor scope tells the timestep."""
        explicit = scope.current_generation()
        key: Hashable = explicit if explicit is not None else threading.get_ident()
        grid = explicit.timesteps if explicit is not None else None
        track = self._track(key)
        base = scope.current_branch() or ""
        if timestep is None:
            if grid is None:
                return None
            return self._count(key, track, base, grid)
        starts = self._restarts(track, timestep, base, latents, conditions)
        if starts:
            track.serial += 1
            track.step, track.timestep, track.direction = 0, timestep, 0
            track.called, track.conditions = {}, {}
        elif timestep != track.timestep:
            assert track.timestep is not None
            track.direction = 1 if timestep > track.timestep else -1
            track.step += 1
            track.timestep = timestep
            track.called = {}
        name, i = base, 0
        while name in track.called:  # the same branch again on the same latents: one of its own
            i += 1
            name = f"{base}#{i}"
        track.called[name] = Seen(latents)
        if name not in track.conditions:
            track.conditions[name] = tuple(Seen(c) for c in conditions)
        return Moment(key, track.serial, name, track.step, timestep, starts)

    def forget(self, key: Hashable) -> None:
        """Drop a track, e.g. of an explicit generation that has ended."""
        with self._lock:
            self._tracks.pop(key, None)

    def restart(self) -> None:
        """Let the next call of every track begin a new generation."""
        with self._lock:
            for track in self._tracks.values():
                track.timestep, track.step = None, -1
                track.called, track.conditions = {}, {}

    def _track(self, key: Hashable) -> Track:
        with self._lock:
            track = self._tracks.get(key)
            if track is None:
                track = self._tracks[key] = Track()
                while len(self._tracks) > MAX_TRACKS:
                    self._tracks.popitem(last=False)
            else:
                self._tracks.move_to_end(key)
            return track

    @staticmethod
    def _count(key: Hashable, track: Track, name: str, grid: tuple[float, ...]) -> Moment:
        """A model without a timestep input, inside an explicit generation: one call, one step."""
        starts = track.step < 0 or (name in track.called and track.step + 1 >= len(grid))
        if starts:
            track.serial, track.step, track.called = track.serial + 1, 0, {}
        elif name in track.called:
            track.step += 1
            track.called = {}
        track.called[name] = Seen(None)
        track.timestep = grid[track.step]
        return Moment(key, track.serial, name, track.step, grid[track.step], starts)

    @staticmethod
    def _restarts(
        track: Track, timestep: float, base: str, latents: Any, conditions: Sequence[Any]
    ) -> bool:
        if track.timestep is None:
            return True
        if timestep == track.timestep:
            before = track.called.get(base)
            return before is not None and not before.same(latents)
        direction = 1 if timestep > track.timestep else -1
        if track.direction and direction != track.direction:
            return True
        known = track.conditions.get(base)
        if known is None:  # a branch that joins later, as guidance over an interval does
            return False
        return len(known) != len(conditions) or not all(
            k.same(c) for k, c in zip(known, conditions, strict=True)
        )


def read_timestep(value: Any) -> float | None:
    """The timestep as one number, None if the samples of a batch stand at different ones.

    A [B] tensor must be uniform. A [B, tokens] tensor (image-to-video with a clean first frame)
    counts as its largest entry. Reading a CUDA tensor waits for the device.
    """
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, Tensor) or value.numel() == 0 or value.is_complex():
        return None
    if value.numel() == 1:
        return float(value.item())
    low, high = torch.aminmax(value)
    if value.dim() == 1 and bool(low != high):
        return None
    return float(high.item())
