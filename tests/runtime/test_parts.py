"""Slots, dispatcher, memo and sketch, each by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ditcache import Plan, RegionSchedule
from ditcache.kernels.forecast import forecast, forecast_reference
from ditcache.runtime import seen
from ditcache.runtime.clock import Moment
from ditcache.runtime.dispatcher import GenerationState, Sample, decide
from ditcache.runtime.memo import PrologueMemo
from ditcache.runtime.sketch import sketch
from ditcache.runtime.slots import Ring, SlotSet
from hypothesis import given, settings
from hypothesis import strategies as st

# Slots ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    history=st.integers(1, 4),
    writes=st.integers(0, 9),
    row=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=6),
)
def test_property_a_ring_forecasts_as_a_list_newest_first(history, writes, row):
    values = [torch.randn(3, 5) for _ in range(writes)]
    ring = Ring(torch.zeros(3, 5), history)
    address = ring.buffer.data_ptr()
    for step, value in enumerate(values):
        ring.push(step, value)
    kept = values[::-1][:history]
    assert ring.steps == list(range(writes))[::-1][:history]
    assert ring.buffer.data_ptr() == address
    expected = sum((w * v for w, v in zip(row, kept, strict=False)), torch.zeros(3, 5))
    weights = torch.tensor(ring.physical(row))
    torch.testing.assert_close(forecast(ring.buffer, weights), expected, rtol=1e-5, atol=1e-5)


def test_a_ring_keeps_copies():
    ring, value = Ring(torch.zeros(2), 2), torch.ones(2)
    ring.push(0, value)
    value.zero_()
    assert ring.buffer[0].tolist() == [1, 1]


def test_a_slot_set_starts_anew_where_shape_dtype_or_history_change():
    slots = SlotSet()
    slots.push("a", 0, torch.ones(2), 2)
    slots.push("a", 1, torch.ones(2), 2)
    assert slots.rings["a"].steps == [1, 0]
    for value, history in (
        (torch.ones(3), 2),
        (torch.ones(3).half(), 2),
        (torch.ones(3).half(), 3),
    ):
        slots.push("a", 2, value, history)
        held = [2, 2] if history == 3 else [2]  # another K keeps what there is
        assert slots.rings["a"].steps == held
    assert slots.nbytes == 3 * 3 * 2
    slots.clear()
    assert slots.rings["a"].steps == []


# Dispatcher -------------------------------------------------------------------------------------

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


def test_the_plan_is_obeyed():
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


def test_nothing_planned_and_given_up():
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


# Memo -------------------------------------------------------------------------------------------


def memo(budget=1000):
    runs = []

    def run(*inputs):
        runs.append(len(inputs))
        numbers = [i.abs().sum() if isinstance(i, torch.Tensor) else i for i in inputs]
        return (sum(numbers) * torch.ones(10),)

    return PrologueMemo(run, budget), runs


def test_a_memo_tells_content_of_small_and_identity_of_large():
    made, runs = memo()
    a = torch.ones(3)
    assert [made.get([a])[1], made.get([a.clone()])[1]] == [False, True]
    big = torch.ones(50_000)
    assert [made.get([big])[1], made.get([big])[1], made.get([big.clone()])[1]] == [0, 1, 0]
    big.add_(1)
    assert not made.get([big])[1]
    weight = torch.nn.Parameter(torch.ones(3))
    assert [made.get([weight])[1], made.get([weight])[1]] == [False, True]
    assert not made.get([torch.nn.Parameter(torch.ones(3))])[1]
    assert len(runs) == 6


def test_weights_are_looked_at_together(monkeypatch):
    """However many there are, a device is waited for once."""
    made, _ = memo()
    dtypes = (torch.float32, torch.bfloat16, torch.complex64)
    weights = [torch.nn.Parameter(torch.randn(n, 3, dtype=d)) for n in (1, 400) for d in dtypes]
    copies: list[int] = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: (copies.append(1), cpu(t))[1])
    made.get(weights)
    assert len(copies) == 1
    made.revalidate()
    assert len(copies) == 2
    assert made.get(weights)[1], "nothing has changed"
    weights[-1].data.mul_(1.5)  # counts no version
    made.revalidate()
    assert not made.get(weights)[1]
    assert [len(seen.glimpse(w)) * 4 for w in weights] == [len(g) for g in seen.glimpses(weights)]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.zeros(2), -torch.zeros(2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2), torch.zeros(1, 2)),
        (1, 1.0),
        (1, True),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float16)),
    ],
)
def test_a_memo_tells_apart_what_only_compares_equal(one, two):
    made, _ = memo()
    made.get([one])
    assert not made.get([two])[1]


@pytest.mark.parametrize("empty", [torch.empty(0), torch.empty(0, dtype=torch.bfloat16)])
def test_a_memo_takes_empty_and_expanded_tensors(empty):
    made, _ = memo()
    inputs = [empty, torch.tensor(1.0).expand(1), torch.tensor([1j])]
    assert [made.get(inputs)[1] for _ in range(2)] == [False, True]


def test_a_memo_forgets_with_its_inputs_and_stays_in_budget():
    made, _ = memo(budget=100)
    inputs = [torch.ones(50_000) for _ in range(4)]
    for value in inputs:
        made.get([value])
        assert made.nbytes <= 100
    del inputs, value
    assert (made.nbytes, len(made._entries)) == (0, 0)


def test_a_memo_does_not_key_what_it_cannot():
    made, runs = memo()
    with torch.inference_mode():
        value = torch.ones(50_000)
        made.get([value])
        made.get([value])
    assert len(runs) == 2


# Sketch -----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 3000), width=st.sampled_from([0, 16, 64, 512]), seed=st.integers(0, 9))
def test_property_a_sketch_is_linear(size, width, seed):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(size, generator=g), torch.randn(size, generator=g)
    both = sketch(2 * a - b, width)
    torch.testing.assert_close(both, 2 * sketch(a, width) - sketch(b, width), rtol=1e-4, atol=1e-4)


def test_a_sketch_is_exact_where_it_fits_and_short_where_not():
    a = torch.randn(3, 5)
    assert sketch(a, 0).shape == sketch(a, 16).shape == (15,)
    assert sketch(torch.randn(1000), 64).shape == (64,)
    assert sketch(torch.randn(100).bfloat16(), 64).dtype == torch.float32


def test_sketched_inner_products_are_unbiased():
    """Mean over many pairs within four standard errors; the spread as theory says."""
    width, size, pairs = 64, 1024, 600
    g = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(pairs):
        a = torch.randn(size, generator=g)
        b = 0.5 * a + torch.randn(size, generator=g)
        a, b = a / a.norm(), b / b.norm()
        errors.append(float(sketch(a, width) @ sketch(b, width) - a @ b))
    spread = float(np.std(errors))
    assert abs(np.mean(errors)) < 4 * spread / pairs**0.5
    assert spread < 1.5 * (2 / width) ** 0.5


def test_the_kernel_agrees_with_its_reference_on_the_host():
    slot, weights = torch.randn(3, 4, 5), torch.randn(3)
    torch.testing.assert_close(forecast(slot, weights), forecast_reference(slot, weights))
