"""The forecast kernel on the host and on a device, against its reference."""

from __future__ import annotations

import pytest
import torch
from ditcache.kernels.forecast import MAX_HISTORY, forecast, forecast_reference
from ditcache.kernels.formats import FORMATS, Packed
from ditcache.kernels.write import write
from hypothesis import given, settings
from hypothesis import strategies as st

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def tolerance(dtype):
    if dtype == torch.float32:
        return {"rtol": 1e-5, "atol": 1e-5}
    return {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-3}


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, MAX_HISTORY),
    shape=st.lists(st.integers(1, 9), min_size=0, max_size=4),
    dtype=st.sampled_from(DTYPES),
)
def test_property_the_host_path_equals_the_reference(k, shape, dtype):
    slot, weights = torch.randn(k, *shape).to(dtype), torch.randn(k)
    out = forecast(slot, weights)
    assert (out.shape, out.dtype) == (torch.Size(shape), dtype)
    torch.testing.assert_close(out, forecast_reference(slot, weights), **tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_single_entry_of_weight_one_is_copied_bit_for_bit(dtype):
    slot = torch.randn(1, 5, 7).to(dtype)
    out = forecast(slot, torch.ones(1))
    assert torch.equal(out, slot[0])
    out.zero_()
    assert slot.abs().sum() > 0, "a copy, not a view"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_taken_in_fp32(dtype):
    """1024 + 1 - 1024 is 1, but 0 where the sum is rounded to half precision in between."""
    slot = torch.tensor([[2048.0], [1.0], [2048.0]]).to(dtype)
    assert forecast(slot, torch.tensor([1.0, 1.0, -1.0])).item() == 1.0


@pytest.mark.parametrize(
    ("slot", "weights", "message"),
    [
        (torch.ones(5, 2), torch.ones(5), "history of 1 to 4"),
        (torch.ones(0, 2), torch.ones(0), "history of 1 to 4"),
        (torch.ones(2, 2, dtype=torch.int32), torch.ones(2), "floating-point"),
        (torch.ones(2, 2), torch.ones(3), "needs 2 weights"),
        (torch.ones(2, 2), torch.ones(2, 1), "needs 2 weights"),
    ],
)
def test_what_the_kernel_does_not_take_is_named(slot, weights, message):
    with pytest.raises(ValueError, match=message):
        forecast(slot, weights)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 5, 11), (1, 4097, 65), (2, 1 << 20)])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_kernel_on_a_device(k, shape, dtype):
    slot, weights = torch.randn(k, *shape, device="cuda").to(dtype), torch.randn(k, device="cuda")
    torch.testing.assert_close(
        forecast(slot, weights), forecast_reference(slot, weights), **tolerance(dtype)
    )


@pytest.mark.gpu
def test_entries_beyond_two_to_the_31_elements():
    slot = torch.zeros(3, 3 << 28, device="cuda", dtype=torch.float16)
    slot[2, -1] = 1.0
    assert forecast(slot, torch.tensor([0.0, 0.0, 2.0], device="cuda"))[-1].item() == 2.0


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("row", [None, -2, 1, 7])
def test_packed_rings_and_rows_of_a_table(kind, row):
    values = torch.randn(2, 3, 70).to(torch.float32)
    slot, table = Packed.empty(FORMATS[kind], 2, values[0]), torch.randn(4, 2)
    for k in range(2):
        write(values[k], slot, k)
    weights = table[0] if row is None else table
    index = None if row is None else torch.tensor([row])
    add = torch.randn(3, 70).to(torch.bfloat16)
    got = forecast(slot, weights, row=index, add=add)
    w = table[min(max(row or 0, 0), 3)]
    torch.testing.assert_close(got, torch.tensordot(w, slot.unpack(), 1) + add.float())
    bound = w.abs().sum() * values.abs().max() / 14  # fp8 keeps four bits of each number
    assert (got - torch.tensordot(w, values, 1) - add).abs().max() < bound


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        ((torch.ones(2, 0), torch.ones(2)), {}, "empty slot"),
        ((torch.ones(3, 2).t(), torch.ones(2)), {}, "contiguous slot"),
        ((torch.ones(2, 3), torch.ones(4, 2)), {"row": torch.tensor([1.0])}, "as row"),
        ((torch.ones(2, 3), torch.ones(4, 3)), {"row": torch.tensor(1)}, r"table \[steps, 2\]"),
        ((torch.ones(2, 3), torch.ones(2).half()), {}, "fp32 weights"),
        ((torch.ones(2, 3), torch.ones(2)), {"add": torch.ones(2)}, "entries' shape"),
        ((torch.ones(2, 3), torch.ones(2, device="meta")), {}, "weights on cpu"),
    ],
)
def test_what_does_not_fit_is_named(arguments, more, message):
    with pytest.raises(ValueError, match=message):
        forecast(*arguments, **more)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", FORMATS)
def test_packed_rings_on_a_device(kind):
    if kind == "fp8_e4m3" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no hardware for fp8-e4m3")
    value = torch.randn(3, 4097, device="cuda", dtype=torch.bfloat16).float()
    slot, table = Packed.empty(FORMATS[kind], 2, value), torch.randn(4, 2, device="cuda")
    for k in range(2):
        write(value, slot, k)
    row = torch.tensor([3], dtype=torch.int32, device="cuda")
    got = forecast(slot, table, row=row, add=value)
    expected = forecast_reference(slot, table, row=row, add=value)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
