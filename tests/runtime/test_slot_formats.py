"""Slots in a storage format: fewer bytes, a small bounded error, and nothing else that changes."""

from __future__ import annotations

import ditcache
import pytest
import torch
from ditcache.kernels.forecast import forecast
from ditcache.kernels.formats import FORMATS, Packed
from ditcache.runtime.config import OptionError, parse
from ditcache.runtime.session import session_of
from ditcache.runtime.slots import Ring, SlotSet

from .helpers import Denoiser, compiled, counting, generate, planned

# Bounds of the relative error of a forecast 2 y1 - y0 from packed entries.
ERROR = {"bf16": 2e-2, "fp16": 3e-3, "fp8_e4m3": 0.2, "int8": 4e-2}


def bodies(made, seed=0):
    """How many steps computed, and what came out."""
    with counting() as ran:
        out = generate(made, seed)
    return ran["body"], out


@pytest.mark.parametrize("name", FORMATS)
def test_a_ring_reads_what_was_pushed_but_for_rounding(name):
    values = [torch.randn(3, 70) for _ in range(5)]
    ring = Ring(values[0], 2, FORMATS[name])
    address = ring.buffer.data.data_ptr()
    for step, value in enumerate(values):
        ring.push(step, value)
    assert isinstance(ring.buffer, Packed)
    assert ring.buffer.data.data_ptr() == address
    assert ring.nbytes == 2 * FORMATS[name].nbytes(210)
    assert ring.fits(values[0])
    assert not ring.fits(values[0].half())
    for k in range(2):
        assert ring.entry(k).dtype == torch.float32
        error = (ring.entry(k) - values[4 - k]).norm() / values[4 - k].norm()
        assert 0 < error < ERROR[name] / 3
    made = forecast(ring.buffer, torch.tensor(ring.physical((2.0, -1.0))))
    expected = 2.0 * values[4] - values[3]
    assert (made - expected).norm() / expected.norm() < ERROR[name]


def test_another_format_makes_the_ring_anew_and_keeps_what_it_held():
    slots, value = SlotSet(), torch.randn(200)
    slots.push("a", 0, value, 2)
    slots.push("a", 1, value, 2, kind=FORMATS["int8"])
    ring = slots.rings["a"]
    assert ring.steps == [1, 0]
    torch.testing.assert_close(ring.entry(1), value, rtol=0, atol=value.abs().max() / 200)


@pytest.mark.parametrize("name", FORMATS)
def test_packed_slots_cost_little_accuracy_and_as_many_bytes_as_promised(name):
    """As many steps computed, the result close to that of plain slots, the bytes as promised."""
    model = Denoiser()
    plain, plan = planned(model)
    made = compiled(Denoiser(), plan=plan, slot_format=name)
    expected, (count, found) = generate(plain), bodies(made)
    assert count == plan.computed_steps
    uncached, error = generate(model), (found - expected).norm()
    assert 0 < error / uncached.norm() < ERROR[name] / 4
    summary, before = ditcache.summary(made), ditcache.summary(plain)
    entries = before.slot_bytes // 4 // plan.regions[0].history
    assert summary.slot_bytes == plan.regions[0].history * FORMATS[name].nbytes(entries)
    assert summary.slot_bytes < 0.55 * before.slot_bytes
    assert f"as {name}" in str(summary)
    assert summary.fallbacks == {}


def test_a_budget_is_of_packed_bytes():
    plan = planned(Denoiser())[1]
    whole = compiled(Denoiser(), plan=plan)
    generate(whole)
    budget = ditcache.summary(whole).slot_bytes // 3
    refused = compiled(Denoiser(), plan=plan, slot_budget=budget)
    assert bodies(refused)[0] == len(plan.timesteps)
    assert ditcache.summary(refused).fallbacks == {"the plan does not fit this graph": 12}
    made = compiled(Denoiser(), plan=plan, slot_budget=budget, slot_format="int8")
    assert bodies(made)[0] == plan.computed_steps


def test_a_format_without_hardware_for_it_is_said_once(monkeypatch, caplog):
    plan = planned(Denoiser())[1]

    def missing(dtype, device):
        raise ValueError("fp8_e4m3 needs a GPU of compute capability 8.9 or newer")

    monkeypatch.setattr("ditcache.passes.cached_regions.needs_fp8", missing)
    made = compiled(Denoiser(), plan=plan, slot_format="fp8_e4m3")
    assert bodies(made)[0] == len(plan.timesteps)
    assert ditcache.summary(made).fallbacks == {"the plan does not fit this graph": 12}
    assert caplog.text.count("insert-cache: fp8_e4m3 needs a GPU") == 1


def test_an_unknown_format_is_named():
    with pytest.raises(OptionError, match="'int4'; expected one of bf16, "):
        parse({"slot_format": "int4"})


@pytest.mark.parametrize("name", FORMATS)
def test_a_value_that_is_not_finite_makes_the_forecast_so(name):
    value = torch.randn(300)
    ring = Ring(value, 2, FORMATS[name])
    ring.push(0, value)
    value[7] = torch.nan
    ring.push(1, value)
    made = forecast(ring.buffer, torch.tensor(ring.physical((2.0, -1.0))))
    assert not made.isfinite().all()


def test_the_guard_compares_with_what_is_stored():
    """Finely stored, it sees what it sees with plain slots; coarsely, the rounding as well."""
    worst, profile = [], None
    for name in (None, "fp16", "fp8_e4m3"):
        made = compiled(Denoiser(), guard="warn", remember=False, slot_format=name)
        if profile is None:
            profile = ditcache.calibrate(made, lambda i, made=made: generate(made, i), 4)
        generate(made)
        ditcache.apply(made, profile.plan(3.0))
        ditcache.reset(made)
        for seed in range(20, 24):
            generate(made, seed)
        worst.append(session_of(made).stats.worst_strain)
    assert worst[0] > 0
    assert worst[1] == pytest.approx(worst[0], rel=0.05)
    assert worst[2] > 1.05 * worst[0]
