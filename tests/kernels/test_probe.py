"""The probe's host path: its figures, its verdict, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from ditcache.kernels.formats import FORMATS, Packed
from ditcache.kernels.probe import probe, verdict_on
from ditcache.kernels.write import write
from ditcache.passes.ops import cache_probe


def test_the_figures_are_those_of_cache_probe():
    value, slot = torch.randn(3, 5, 7).to(torch.bfloat16), torch.randn(1, 3, 5, 7)
    torch.testing.assert_close(probe(value, slot), cache_probe(value, slot))


def test_the_distance_to_a_forecast_is_the_guards():
    value, slot = torch.randn(4, 33), torch.randn(3, 4, 33)
    weights = torch.randn(3)
    made = torch.tensordot(weights, slot, 1)
    moved, size = probe(value, slot, weights=weights, norm="l2", relative_to="value")
    strain = (value - made).norm() / value.norm()
    torch.testing.assert_close(moved / size, strain)


def test_a_packed_reference_counts_as_what_it_unpacks_to():
    value = torch.randn(200)
    slot = Packed.empty(FORMATS["int8"], 1, value)
    write(value, slot, 0)
    moved, _ = probe(value, slot)
    torch.testing.assert_close(moved, (value - slot.entry(0)).abs().mean())
    assert moved > 0


def test_a_verdict_says_when_the_limit_is_passed():
    reference, limit, verdict = torch.ones(1, 8), torch.tensor([0.5]), verdict_on("cpu")
    flags = []
    for change in (0.25, 0.75, 0.25):
        probe(reference[0] + change, reference, limit=limit, verdict=verdict)
        flags.append(verdict.flag.item())
    assert flags == [0, 1, 0]
    assert verdict.running.tolist() == [0.25, 0.75, 0.25, 3.0]
    verdict.clear()
    assert not verdict.running.any()


def test_a_guards_flag_stays():
    reference, verdict = torch.ones(1, 8), verdict_on("cpu")
    flags = []
    for change, limit in ((1.0, 2.0), (1.0, 0.5), (0.0, 0.5)):
        how = {"limit": torch.tensor([limit]), "verdict": verdict, "sticky": True}
        probe(reference[0] + change, reference, **how)
        flags.append(verdict.flag.item())
    assert flags == [0, 1, 1]


def test_changes_add_up_until_the_limit():
    """TeaCache's rule, as `passes/policies/teacache.py` follows it on the host."""
    reference, limit, verdict = torch.ones(1, 8), torch.tensor([1.0]), verdict_on("cpu")
    flags = []
    for _ in range(7):
        probe(reference[0] + 0.375, reference, limit=limit, verdict=verdict, accumulate=True)
        flags.append(verdict.flag.item())
    assert flags == [0, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_sets_the_flag(bad):
    reference, verdict = torch.ones(1, 8), verdict_on("cpu")
    value = torch.ones(8)
    value[3] = bad
    probe(value, reference, limit=torch.tensor([0.5]), verdict=verdict)
    assert verdict.flag.item() == 1
    probe(torch.ones(8), torch.zeros(1, 8), limit=torch.tensor([0.5]), verdict=verdict)
    assert verdict.flag.item() == 1, "a reference of zeros tells nothing"


@pytest.mark.parametrize(
    ("value", "reference", "more", "message"),
    [
        (torch.ones(0), torch.ones(1, 0), {}, "empty value"),
        (torch.ones(3), torch.ones(1, 2), {}, "entries of the value's shape"),
        (torch.ones(2), torch.ones(2, 2), {}, "needs weights for a reference of 2"),
        (torch.ones(2), torch.ones(2, 2), {"weights": torch.ones(3)}, "needs 2 weights"),
        (torch.ones(2), torch.ones(2, 2), {"weights": torch.ones(4, 2)}, "needs 2 weights"),
        (torch.ones(2), torch.ones(2, 1).t(), {"norm": "max"}, "'l1' and 'l2'"),
        (torch.ones(2), torch.ones(1, 2), {"relative_to": "both"}, "'reference' or 'value'"),
        (torch.ones(2), torch.ones(1, 2), {"limit": torch.ones(1)}, "limit and a verdict"),
        (
            torch.ones(2),
            torch.ones(1, 2),
            {"limit": torch.ones(2), "verdict": verdict_on("cpu")},
            "a limit f32\\[1\\]",
        ),
    ],
)
def test_what_does_not_fit_is_named(value, reference, more, message):
    with pytest.raises(ValueError, match=message):
        probe(value, reference, **more)


def test_types_are_not_the_callers_default():
    value = torch.randn(200, dtype=torch.float32)
    torch.set_default_dtype(torch.float64)
    try:
        assert verdict_on("cpu").running.dtype == torch.float32
        assert Packed.empty(FORMATS["int8"], 2, value).scales.dtype == torch.float32
        assert probe(value, value.unsqueeze(0)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 11), (2, 4097, 65), (1, 3 << 20)])
def test_the_figures_on_a_device(norm, shape):
    value, slot = torch.randn(shape, device="cuda"), torch.randn(3, *shape, device="cuda")
    how = {"weights": torch.randn(3, device="cuda"), "norm": norm}
    limit, verdict = torch.full((1,), 0.1, device="cuda"), verdict_on("cuda")
    got = [probe(value, slot, **how, limit=limit, verdict=verdict) for _ in range(3)]
    host = {"weights": how["weights"].cpu(), "norm": norm}
    torch.testing.assert_close(
        got[0].cpu(), probe(value.cpu(), slot.cpu(), **host), rtol=1e-4, atol=1e-6
    )
    assert torch.equal(got[0], got[1])
    assert torch.equal(got[0], got[2])
    assert verdict.flag.item() == 1
    assert verdict.running[3].item() == 3.0


@pytest.mark.gpu
def test_a_probe_waits_for_nothing():
    value, slot = torch.randn(1000, device="cuda"), torch.randn(1, 1000, device="cuda")
    limit, verdict = torch.ones(1, device="cuda"), verdict_on("cuda")
    probe(value, slot, limit=limit, verdict=verdict)
    torch.cuda.set_sync_debug_mode("error")
    try:
        probe(value, slot, limit=limit, verdict=verdict)
    finally:
        torch.cuda.set_sync_debug_mode("default")
