"""The dispatcher: what a plan says about a step, given its grid and what was computed."""

from __future__ import annotations

import torch
from ditcache import Plan, RegionSchedule
from ditcache.runtime.dispatcher import decide
from ditcache.runtime.generation_state import GenerationState, Sample
from ditcache.runtime.slots import SlotSet
from ditcache.runtime.track import Moment
from hypothesis import given, settings
from hypothesis import strategies as st

TIMES = (1.0, 0.8, 0.6, 0.4, 0.2)


def a_plan(computed=(0, 1, 3), row=(2.0, -1.0), times=TIMES, **changes) -> Plan:
    zero = (0.0,) * len(row)
    rows = tuple(zero if i in computed else row for i in range(len(times)))
    region = RegionSchedule("denoiser", tuple(computed), rows, len(row), "", "")
    return Plan("sig", tuple(times), (region,), "edf", **changes).validate()


def at(state: GenerationState, step: int, t: float) -> Moment:
    if step == len(state.seen):
        state.seen.append(t)
    return Moment(0, state.serial, "", step, t)


def run_through(plans, times, computed_at=None):
    """The steps that forecast, and the reasons of those that did not though planned."""
    state, slots = GenerationState(0), SlotSet()
    hits, reasons = [], []
    for i, t in enumerate(times):
        decision = decide(state, at(state, i, t), slots, plans)
        if decision.rows:
            hits.append(i)
        elif (
            decision.plan is not None
            and (computed_at is None or i in computed_at)
            and decision.step in decision.plan.regions[0].computed
        ):
            slots.push("denoiser", i, torch.ones(2), 2)
        reasons.append(decision.reason)
    return hits, reasons


def test_steps_that_the_plan_skips_are_forecast():
    assert run_through([a_plan()], TIMES) == ([2, 4], [None] * 5)


def test_rounded_timesteps_are_on_the_grid_and_others_are_not():
    assert run_through([a_plan()], [t + 0.01 for t in TIMES])[0] == [2, 4]
    hits, reasons = run_through([a_plan()], (1.0, 0.8, 0.7, 0.4, 0.2))
    assert not hits
    assert reasons[2:] == ["unknown step"] * 3


def test_a_missing_write_is_never_papered_over():
    hits, reasons = run_through([a_plan()], TIMES, computed_at={0, 3})
    assert not hits
    assert reasons == [None, None, "history", None, "history"]


def test_a_generation_that_starts_later_lands_on_the_plans_tail():
    hits, reasons = run_through([a_plan(row=(1.0, 0.0))], TIMES[1:])
    assert hits == [1, 3]  # steps 2 and 4 of the plan, from what step 1 and 3 computed
    assert set(reasons) == {None}
    hits, _ = run_through([a_plan()], TIMES[3:])
    assert not hits, "two outputs are needed, only one was computed"


def test_rising_time_runs_under_rising_plans_only():
    plan = a_plan(times=TIMES[::-1])
    assert run_through([a_plan(), plan], TIMES[::-1])[0] == [2, 4]
    assert run_through([plan], TIMES)[0] == []
    assert run_through([a_plan()], TIMES[::-1])[0] == [], "an inversion is no generation"


def test_the_plan_for_the_grid_and_the_shape_is_found():
    other = a_plan(times=(1.0, 0.7, 0.5, 0.3, 0.1))
    assert run_through([other, a_plan()], TIMES)[0] == [2, 4]
    state = GenerationState(0, sample=Sample((2, 7), "float32"))
    small, large = a_plan(shape=(1, 4), dtype="float32"), a_plan(shape=(1, 7), dtype="float32")
    assert decide(state, at(state, 0, 1.0), None, [small, large]).plan is large
    state = GenerationState(0, sample=Sample((2, 7), "float16"))
    assert decide(state, at(state, 0, 1.0), None, [small, large]).reason == "changed shape"


def test_without_a_plan_there_is_no_reason_and_a_given_up_generation_has_one():
    state = GenerationState(0)
    assert decide(state, at(state, 0, 1.0), None, []).reason is None
    state.full = "because"
    assert decide(state, at(state, 0, 1.0), None, [a_plan()]).reason == "because"


@settings(max_examples=100, deadline=None)
@given(
    computed=st.sets(st.integers(1, 9), max_size=8),
    row=st.lists(st.sampled_from([0.0, 1.0, -0.5]), min_size=1, max_size=4),
    failed=st.sets(st.integers(0, 9), max_size=4),
    start=st.integers(0, 4),
)
def test_property_a_forecast_uses_exactly_the_planned_steps(computed, row, failed, start):
    steps, zero = sorted({0, *computed}), (0.0,) * len(row)
    rows = []
    for i in range(10):
        keep = sum(c < i for c in steps)
        rows.append(
            zero if i in steps else tuple(w if k < keep else 0.0 for k, w in enumerate(row))
        )
    times = tuple(1 - i / 10 for i in range(10))
    region = RegionSchedule("denoiser", tuple(steps), tuple(rows), len(row), "", "")
    plan = Plan("s", times, (region,), "edf").validate()
    state, slots, written = GenerationState(0), SlotSet(), []
    for i, t in enumerate(times[start:]):
        decision = decide(state, at(state, i, t), slots, [plan])
        step = i + start
        if decision.rows:
            used = max(k + 1 for k, w in enumerate(decision.rows["denoiser"]) if w)
            assert step not in steps
            assert written[::-1][:used] == [c for c in steps if c < step][::-1][:used]
        elif step in steps and step not in failed:
            slots.push("denoiser", i, torch.ones(1), len(row))
            written.append(step)
