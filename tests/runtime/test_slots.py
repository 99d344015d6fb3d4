"""Slots: rings of the last computed values, by themselves."""

from __future__ import annotations

import torch
from ditcache.kernels.forecast import forecast
from ditcache.runtime.slots import Ring, SlotSet
from hypothesis import given, settings
from hypothesis import strategies as st


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
