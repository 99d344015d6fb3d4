"""The clock: which generation, which step, which guidance branch a call of the model belongs to."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import scope
from .foresight import LOST, close_to, denied, foresee, packed, snapped
from .late_reads import LateReads, waits
from .seen import Conditions, Glimpse, Kind, Latents, Seen, glimpse, kind_of, read_timestep
from .track import Foreseen, Moment, Order, Sighting, Track

MAX_TRACKS = 16  # threads that came and went; explicit generations are dropped at their end
MAX_BRANCHES = 8
TOO_MANY_CALLS = "more calls than timesteps"
CONDITION_CHANGED = "a condition changed"
OTHER_LATENTS = "other latents"
CLASH = "other latents at one timestep"
TAKING_TURNS = (
    "calls at one timestep have different latents. Either the sampler calls the model several "
    "times at one timestep (Heun, PLMS), or generations take turns on one thread: put each into "
    "ditcache.generation() then."
)


class Clock:
    """Tells the moment of each call from scopes, timesteps and the identity of the inputs.

    A step begins where the timestep moves on in the generation's direction; a generation where it
    jumps back, where a branch is called twice at one timestep with other latents, where the
    conditions of a branch change, or where the latents cannot stem from those before. Two calls at
    one timestep on the same latents, or on latents of another shape, are guidance branches. When
    the calls do not add up, the clock starts a new generation: the plan then finds no history, and
    the step is computed in full.

    On a device the host would wait for what it has to read. From the second step of a generation on
    whose grid is known, the moment is foreseen (`foresight.py`) and confirmed when what was read
    comes in; `lost` is called where it is not, and from then on everything is read at once.
    """

    def __init__(self) -> None:
        self.late = LateReads()
        self.lost: Callable[[Moment, str], None] = lambda *_: None
        self._foresees = True
        self._usual: Order = ()  # the calls of a step in the generation before
        self._tracks: OrderedDict[Hashable, Track] = OrderedDict()
        self._lock = threading.Lock()

    def tick(
        self,
        timestep: float | None,
        latents: Any,
        conditions: Sequence[Any],
        names: tuple[str, ...] = (),
    ) -> Moment | None:
        """The moment of a call; None where neither input nor scope tells the timestep.

        `names` are those of the conditions, in a fixed order.
        """
        explicit = scope.current_generation()
        if timestep is None:
            if explicit is None or explicit.timesteps is None:
                return None
            base = scope.current_branch() or ""
            return self._count(explicit, self._track(explicit), base, explicit.timesteps)
        return self.enter(self.look(timestep, latents, conditions, names))

    def look(
        self, timestep: float, latents: Any, conditions: Sequence[Any], names: tuple[str, ...] = ()
    ) -> Sighting:
        """The moment that a call would have, if it were entered now."""
        explicit = scope.current_generation()
        key, base = _here()
        track = self._track(key)
        now = Latents(latents)
        timestep = snapped(track.grid, track.step, timestep)
        name = _by_kind(track, timestep, base, now.kind)
        name, cause = (name, LOST) if track.lost else _place(track, timestep, name, latents)
        known = track.conditions.get(name)  # None: a branch that joins later, by interval guidance
        changed = "" if cause or known is None else known.changed(conditions, names)
        if changed:
            cause = CONDITION_CHANGED
        cause = cause or _unrelated(track, timestep, now, explicit=explicit is not None)
        if cause == OTHER_LATENTS and timestep != track.timestep and _made(track, now):
            cause = ""
        if cause:
            moment = Moment(key, track.serial + 1, base, 0, timestep, cause, changed)
        else:
            step = track.step + (timestep != track.timestep)
            moment = Moment(key, track.serial, name, step, timestep)
        return Sighting(moment, track, latents, now, conditions, names, base)

    def foresee(
        self, timestep: Any, latents: Any, conditions: Sequence[Any], names: tuple[str, ...]
    ) -> Sighting | None:
        """The moment that a call must have, told without reading a device; None in any doubt.

        `timestep` is the model's input.
        """
        if not self._foresees or not (waits(timestep) or waits(latents)):
            return None
        key, base = _here()
        track = self._track(key)
        foreseen = foresee(track, base, timestep, latents, conditions, names)
        if foreseen is None:
            return None
        if foreseen.time is None:  # it lies on the host
            found = read_timestep(timestep)
            if found is None or not close_to(track.grid, foreseen.step, found):
                return None
        moment = Moment(key, track.serial, foreseen.branch, foreseen.step, foreseen.timestep)
        now = Latents(latents, late=waits(latents))
        return Sighting(moment, track, latents, now, conditions, names, base, foreseen)

    def announce(self, moment: Moment, grid: tuple[float, ...]) -> None:
        """Tell the grid of the generation of a moment, from its first step on."""
        track = self._track(moment.track)
        if track.serial == moment.serial and not track.grid:
            track.grid = grid

    def enter(self, sighting: Sighting) -> Moment:
        """Take a call that was looked at for one that runs; gives its moment."""
        moment, track, name = sighting.moment, sighting.track, sighting.moment.branch
        self.late.count()
        if moment.cause:
            track.begin()
            track.before = self._usual
            announced = getattr(moment.track, "timesteps", None) or ()
            if waits(sighting.latents) and announced and close_to(announced, 0, moment.timestep):
                track.grid = announced
        if sighting.foreseen is not None:
            self._confirm(sighting, sighting.foreseen)
        kinds, kind = track.kinds.setdefault(sighting.base, []), sighting.glimpse.kind
        if kind not in kinds:
            kinds.append(kind)
        if moment.timestep != track.timestep:
            if track.timestep is not None:
                track.direction = 1 if moment.timestep > track.timestep else -1
            track.step += 1
            track.timestep = moment.timestep
            track.called = {}
            if track.order:
                self._usual = track.before = track.order
            track.order = ()
        track.order += ((sighting.base, name),)
        track.called[name] = Seen(sighting.latents, read=sighting.foreseen is None)
        track.latents[name] = sighting.glimpse
        if name not in track.conditions:
            track.conditions[name] = Conditions(sighting.conditions, sighting.names)
        return moment

    def gave(self, moment: Moment, outputs: tuple[Tensor, ...]) -> None:
        """Take note of what the model gave at a moment: later latents may be made of it."""
        track = self._track(moment.track)
        if track.serial == moment.serial:
            track.outputs[moment.branch] = outputs

    def _confirm(self, sighting: Sighting, foreseen: Foreseen) -> None:
        """Read what is yet to be seen of a call, and compare it when it comes."""
        moment, track, now = sighting.moment, sighting.track, sighting.glimpse
        grid = track.grid
        explicit = isinstance(moment.track, scope.GenerationScope)
        alike = [] if explicit else [x for x in track.latents.values() if x.kind == now.kind]

        def compare(read: Tensor) -> None:
            why = denied(foreseen, read, now, alike, grid)
            if why and track.serial == moment.serial and not track.lost:
                track.lost, self._foresees = True, False
                self.lost(moment, why)

        if (unread := packed(foreseen, sighting.latents)) is not None:
            self.late.read(unread, compare)

    def forget(self, key: Hashable) -> None:
        """Drop a track, e.g. of an explicit generation that has ended."""
        with self._lock:
            self._tracks.pop(key, None)

    def restart(self) -> None:
        """Let the next call of every track begin a new generation."""
        with self._lock:
            for track in self._tracks.values():
                track.timestep, track.step = None, -1
                track.forget_calls()

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
        cause = ""
        if track.step < 0:
            track.begin()
            track.step, cause = 0, "first call"
        elif name in track.called and track.step + 1 >= len(grid):
            # One scope is one loop. What is called more often (a block compiled by itself, say) is
            # no denoising step, and nothing of it may be forecast.
            track.begin()
            track.step, cause = 0, TOO_MANY_CALLS
        elif name in track.called:
            track.step += 1
            track.called = {}
        track.called[name] = Seen(None)
        track.timestep = grid[track.step]
        return Moment(key, track.serial, name, track.step, grid[track.step], cause)


def _here() -> tuple[Hashable, str]:
    """The track of a call made now, and the name of its branch."""
    explicit = scope.current_generation()
    key: Hashable = explicit if explicit is not None else threading.get_ident()
    return key, scope.current_branch() or ""


def _by_kind(track: Track, timestep: float, base: str, kind: Kind) -> str:
    """The branch by the shape of its latents, where one name goes with several.

    Skip-layer guidance calls the model on the latents alone after it was called on the batch of
    both guidance branches: at one timestep, so the second call belongs to the same step.
    """
    kinds = track.kinds.get(base, [])
    if kind not in kinds:
        return f"{base}[{len(kinds)}]" if kinds and timestep == track.timestep else base
    index = kinds.index(kind)
    return f"{base}[{index}]" if index else base


def _place(track: Track, timestep: float, base: str, latents: Any) -> tuple[str, str]:
    """The branch of a call by its time, and why it begins a new generation ("" if it does not)."""
    if track.timestep is None:
        return base, "first call"
    if timestep != track.timestep:
        direction = 1 if timestep > track.timestep else -1
        back = track.direction and direction != track.direction
        return base, "the timestep went back" if back else ""
    before = track.called.get(base)
    if before is not None and not before.same(latents):
        return base, CLASH
    name, i = base, 0
    while name in track.called:  # the same branch again on the same latents: one of its own
        i += 1
        name = f"{base}#{i}"
    return name, "one call over and over" if i > MAX_BRANCHES else ""


def _unrelated(track: Track, timestep: float, now: Latents, *, explicit: bool) -> str:
    """Why the latents cannot be of this generation, "" if they can."""
    alike = [seen for seen in track.latents.values() if seen.kind == now.kind]
    if track.latents and not alike:
        return "" if timestep == track.timestep else "changed shape"
    # Of any branch: one that was left out for a while has latents of long ago.
    if alike and not explicit and not any(seen.leads_to(now) for seen in alike):
        return OTHER_LATENTS
    return ""


def _made(track: Track, now: Latents) -> bool:
    """Whether latents that do not look like those before are made of them and the last outputs.

    So they are where a step goes far: at the start of a steep schedule, where a scheduler clips, or
    where the model has not learned to predict the noise in its input. Guidance mixes the outputs of
    branches, which may be the halves of a batch.
    """
    found: list[Glimpse] = []
    for outputs in track.outputs.values():
        for value in outputs:
            if kind_of(value) == now.kind:
                found.append(glimpse(value))
                if len(value) % 2 == 0:
                    found += [glimpse(torch.cat([half, half])) for half in value.chunk(2)]
    found += [
        x.entries for x in track.latents.values() if x.kind == now.kind and x.entries is not None
    ]
    return now.spanned_by(found)
