"""The generations of one model that are under way, and how they begin and end."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING

from . import scope
from .clock import CLASH, MAX_TRACKS, OTHER_LATENTS, TAKING_TURNS, TOO_MANY_CALLS
from .foresight import LOST
from .generation_state import Beginning, GenerationState
from .self_profiling import is_whole
from .slots import SlotSet
from .track import Moment

if TYPE_CHECKING:
    from .session import Session


class Generations:
    """At most one generation on each track: on a thread, in a task or in a `ditcache.generation`.

    Of more than `MAX_TRACKS` the one that was called longest ago is given up. The session is told
    of each generation that begins or ends.
    """

    def __init__(self, session: Session) -> None:
        self.lock = threading.RLock()
        self._session = session
        self._states: OrderedDict[Hashable, GenerationState] = OrderedDict()
        self._spare: dict[str, SlotSet] = {}  # of a generation that has ended
        self._alone = 0  # explicit generations of one call in a row
        session.clock.lost = self.lost

    @property
    def slot_bytes(self) -> int:
        """Bytes of all slots that are held."""
        return sum(s.nbytes for g in self.open() for s in g.slots.values())

    @property
    def host_bytes(self) -> int:
        """Bytes of slots that lie on the host in place of a device."""
        rings = (r for g in self.open() for s in g.slots.values() for r in s.rings.values())
        return sum(ring.host_bytes for ring in rings)

    def open(self) -> list[GenerationState]:
        """Those under way."""
        return list(self._states.values())

    def of_track(self, track: Hashable) -> GenerationState | None:
        """The generation under way on a track."""
        return self._states.get(track)

    def state(self, moment: Moment) -> GenerationState:
        """The generation that a moment belongs to; begins a new one where the clock says so."""
        with self.lock:
            state = self._states.get(moment.track)
            if state is None or state.serial != moment.serial:
                state = self._begin(moment, state)
            self._states.move_to_end(moment.track)
            while len(self._states) > MAX_TRACKS:
                self._session.finish(self._states.popitem(last=False)[1])
            if moment.step == len(state.seen):
                state.seen.append(moment.timestep)
        return state

    def going_on(self, moment: Moment) -> GenerationState | None:
        """The generation of a moment that is not entered yet, if it does not begin with it."""
        with self.lock:
            state = self._states.get(moment.track)
        return None if moment.cause or state is None or state.serial != moment.serial else state

    def _begin(self, moment: Moment, before: GenerationState | None) -> GenerationState:
        kept: dict[str, SlotSet] = {}
        if before is not None:
            if moment.cause == TOO_MANY_CALLS and before.recording is not None:
                before.recording.broken = f"{TOO_MANY_CALLS} in one ditcache.generation"
            elif len(before.seen) == 1 and before.began.after_one_step:
                self._session.stats.say("one step", _one_step(moment))
            if moment.cause == CLASH and before.recording is not None:
                before.recording.broken = (
                    f"{CLASH}: no plan serves a sampler that calls the model several times at a "
                    "timestep, such as Heun's"
                )
            self._session.finish(before)
            kept = before.slots
        elif self._spare:
            kept, self._spare = self._spare, {}
        for slots in kept.values():
            slots.clear()
        state = GenerationState(moment.serial, _beginning(moment, before), slots=kept)
        if moment.cause in (TOO_MANY_CALLS, LOST):
            state.full = moment.cause
        elif state.began.clashes > 1:
            # Latents that take turns: generations interleaved on one thread. Near their end two
            # images of one prompt may look related, so that the clock alone is not to be trusted.
            state.full = "interleaved generations"
            self._session.stats.say(state.full, f"computing in full: {TAKING_TURNS}")
        elif moment.step > 0:
            state.full = "joined in mid-generation"  # its beginning was given up for other tracks
        else:
            self._session.begins(state)
        self._states[moment.track] = state
        self._session.stats.generations += 1
        if isinstance(moment.track, scope.GenerationScope):
            moment.track.on_close(self, self.end)
        return state

    def end(self, track: Hashable) -> None:
        """Close a track's generation: its recording counts, its slots are freed."""
        with self.lock:
            state = self._states.pop(track, None)
            self._session.clock.forget(track)
            if state is not None:
                if isinstance(track, scope.GenerationScope):
                    self._count_calls(state)
                self._session.finish(state)
                if self._session.captured is not None:  # captures read slots where they lie
                    self._spare = state.slots

    def _count_calls(self, state: GenerationState) -> None:
        """Say where one `ditcache.generation` after the other holds a single call."""
        self._alone = self._alone + 1 if len(state.seen) == 1 else 0
        if self._alone == 2:
            self._session.stats.say(
                "one step",
                "two generations of one step each: ditcache.generation() was opened and closed "
                "around one call of the model. Nothing is forecast then; open it once, around the "
                "whole sampling loop.",
            )

    def end_all(self) -> None:
        """Close every open generation."""
        for track in list(self._states):
            self.end(track)

    def leave(self) -> None:
        """The process ends: a last generation that ran to its end counts too."""
        for state in list(self._states.values()):
            if state.recording is not None and is_whole(state.seen):
                self._session.finish(state)
        self._states.clear()

    def lost(self, moment: Moment, why: str) -> None:
        """A step that was foreseen was another: the rest of its generation computes in full."""
        state = self._states.get(moment.track)
        if state is not None and state.serial == moment.serial:
            state.full = LOST
        self._session.stats.say(
            LOST,
            f"{LOST}: {why}. The rest of the generation is computed in full, and from now on each "
            "step is read at once, which waits for the device. Name guidance branches with "
            "ditcache.branch, and put each sampling loop into ditcache.generation().",
        )


def _beginning(moment: Moment, before: GenerationState | None) -> Beginning:
    """How a generation begins that follows another one on its track."""
    clashes = 0
    if moment.cause in (CLASH, OTHER_LATENTS):
        clashes = 1 + (before.began.clashes if before is not None else 0)
    return Beginning(clashes, after_one_step=before is not None and len(before.seen) == 1)


def _one_step(moment: Moment) -> str:
    """What to say where every call of the model looks like a generation of its own."""
    text = f"two generations of one step each, ended by: {moment.cause}. Nothing is forecast then. "
    if moment.changed == "graph":
        return text + (
            "Each call ran through a graph of its own, as where a Python number that changes (the "
            "time, a step size) became a constant of the graph: pass it as a tensor."
        )
    if moment.changed in ("", "number of inputs"):
        return text + (
            "If your sampler takes more steps than one, its calls do not look like its steps."
        )
    name = [p for p in moment.changed.split(".") if not p.isdigit()][-1]
    return text + (
        f"The input {moment.changed!r} changes at every call. If it follows the latents (the last "
        f"prediction, a noisy mask), say options={{'inputs': {{{name!r}: 'latents'}}}}; if it "
        f"tells the time, {{{name!r}: 'timestep'}}."
    )
