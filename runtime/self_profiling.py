"""Self-profiling: recorded generations become a profile, a plan, and now and then a better one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

from ..passes.outline import Outline
from ..passes.plan_format import Plan, PlanError
from ..passes.plan_from_profile import NOT_ADDED_UP
from ..passes.profile import Profile, ProfileError
from .config import Config
from .guidance_watch import octave
from .profiling import make_profile
from .recorder import Recording
from .stats import Stats
from .store import PlanStore

REFINE_AT = (8, 24, 56)
"""Planned generations after which one more is recorded in full and the plan solved anew.

Most of what more samples give comes with the first few, so three are enough, and the plan stands
still after that. At the budget s the promised speedup is never missed by more than one generation
in eight: uncached generations are at most 1/9, 2/26 and 3/59 of those since planning.
"""
UNLIKE = 4
"""Recordings of which no two go together, after which it is said what keeps them apart."""
WHOLE = 2.5
"""A grid counts as complete at exit if what is left to its end is within so many last steps."""


@dataclass
class SelfProfiler:
    """What one model has recorded of itself, by grid, branches and shapes.

    Each recorded generation is a profile of one sample, merged with those before it and kept on
    disk until there is a plan, so that processes of a single generation add up too. With
    `Config.profile_generations` of them a plan is made; in a process that goes on, it is made anew
    from more of them (`REFINE_AT`). A remembered plan stays as it is.
    """

    config: Config
    stats: Stats
    signature: str = ""
    macs: int = 0
    outline: Callable[[], Outline | None] = lambda: None
    store: PlanStore | None = None
    planned: int = 0  # generations that ran under a plan of ours
    _profiles: dict[Hashable, Profile] = field(default_factory=dict[Hashable, Profile])
    _failures: Counter[Hashable] = field(default_factory=Counter[Hashable])
    _refined: int = 0
    _own: list[Plan] = field(default_factory=list[Plan])

    def give_up(self, plan: Plan, plans: list[Plan]) -> None:
        """Take a plan of ours out of `plans`: a generation went on behind its grid's end.

        It was made from generations that were cut short, and would keep whole ones, which begin
        alike, from being recorded.
        """
        if any(plan is own for own in self._own):
            plans[:] = [p for p in plans if p is not plan]
            if self.store is not None:
                self.store.drop(plan)

    def load(self, weights: str) -> list[Plan]:
        """The plans that earlier processes left; their unfinished profiles are taken in."""
        if self.store is None:
            return []
        for profile in self.store.load_profiles():
            if profile.signature == self.signature:
                self._profiles[_key(profile, weights)] = profile
        self._own = [plan for plan in self.store.load() if plan.signature == self.signature]
        return list(self._own)

    def due(self) -> bool:
        """Whether the generation that begins should run in full to refine the plan."""
        made = self._refined < len(REFINE_AT) and any(
            p.samples >= self.config.recordings for p in self._profiles.values()
        )
        if not made or self.planned < REFINE_AT[self._refined]:
            return False
        self._refined += 1
        return True

    def take(
        self, recording: Recording, plans: list[Plan], weights: str, again: Plan | None = None
    ) -> bool:
        """Take in a generation; puts a plan into `plans` where there are enough of them.

        `weights` marks those that it ran with. `again`: plan for its number of computed steps, from
        what comes now alone. Gives whether a plan was made; a failure is said and not retried.
        """
        started = time.perf_counter()
        enough, store = self.config.recordings, None if again is not None else self.store
        group = (weights, recording.grid, tuple(recording.branches))
        try:
            profile = make_profile(
                [recording], self.signature, guidance=self.config.guidance, macs=self.macs or None
            )
            key = (_key(profile, weights), None if again is None else id(again))
            if (before := self._profiles.get(key if again is not None else key[0])) is not None:
                profile = _joined(before, profile)
            self._profiles[key if again is not None else key[0]] = profile
            if profile.samples < enough:
                if store is not None:
                    store.save_profile(profile)
                self._say_what_differs()
                return False
            plan = self._plan(profile, again)
        except (ProfileError, PlanError) as refused:
            self._failures[group] += 1
            # One broken recording is no verdict; a plan that cannot be made from enough of them is.
            verdict = 1 if isinstance(refused, PlanError) else enough
            if self._failures[group] == verdict:
                self.stats.fall_back("no plan could be made", f"{refused}")
            return False
        finally:
            self.stats.plan_seconds += time.perf_counter() - started
        plans[:] = [p for p in plans if not _same_place(p, plan) and p is not again]
        plans.append(plan)
        self._own.append(plan)
        if store is not None:
            store.save(plan)
            store.drop_profile(profile)
        return True

    def _say_what_differs(self) -> None:
        """Say once why there is no plan yet, where many recordings are all of their own kind."""
        known = self._profiles
        if len(known) < UNLIKE or any(p.samples >= self.config.recordings for p in known.values()):
            return
        named = ("weights", "guidance scale", "timesteps", "guidance branches", "shape or dtype")
        values = zip(*(key for key in known if isinstance(key, tuple)), strict=False)
        differ = [n for n, of in zip(named, values, strict=False) if len(set(of)) > 1]
        self.stats.say(
            "unlike",
            f"{len(known)} kinds of generations were recorded, which differ in "
            f"{', '.join(differ)}; a plan is made once {self.config.recordings} agree",
        )

    def _plan(self, profile: Profile, again: Plan | None) -> Plan:
        known = replace(profile, outline=self.outline())
        if again is not None:
            return known.plan(policy=again.policy, computed_steps=again.computed_steps)
        unpredictable = profile.solver is None and profile.clipped is None
        if unpredictable and self.config.max_error is not None:
            raise PlanError(f"max_error cannot be kept: {NOT_ADDED_UP}")
        plan = known.plan(**self.config.request)
        if unpredictable:
            self.stats.say("solver", f"the plan's error is not predicted: {NOT_ADDED_UP}")
            plan = replace(plan, expected_error=None)
        return plan


def is_whole(grid: Sequence[float]) -> bool:
    """Whether a grid seems to have run to its end (0 or the top), not to have been cut short."""
    if len(grid) < 3:
        return False
    step = grid[-2] - grid[-1]
    end = 0.0 if step > 0 else (1000.0 if max(grid) > 1.0 + 1e-6 else 1.0)
    return abs(grid[-1] - end) <= WHOLE * abs(step)


def _joined(one: Profile, two: Profile) -> Profile:
    """Both together; of a guidance scale or solver that differ somewhat, the first is kept."""
    both = one.merged(two)
    guidance = one.guidance if both.guidance is None and two.guidance is not None else both.guidance
    solver = one.solver if both.solver is None and two.solver is not None else both.solver
    return replace(both, guidance=guidance, solver=solver)


def _key(profile: Profile, weights: str) -> Hashable:
    grid = tuple(float(f"{t:.6g}") for t in profile.timesteps)
    regions = tuple((r.region, r.shape, r.dtype) for r in profile.regions)
    return weights, octave(profile.guidance), grid, profile.branches, regions


def _same_place(one: Plan, two: Plan) -> bool:
    return (one.timesteps, one.shape, one.dtype, octave(one.guidance)) == (
        two.timesteps,
        two.shape,
        two.dtype,
        octave(two.guidance),
    )
