"""Storage formats: what packing keeps of a value, and what it costs in bytes."""

from __future__ import annotations

import pytest
import torch
from ditcache.kernels.formats import (
    FORMATS,
    SCALE_BLOCK,
    Packed,
    format_for,
    format_of,
    pack_reference,
    unpack_reference,
)
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    numbers=st.integers(1, 300),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    size=st.sampled_from([1e-6, 1.0, 300.0]),
    seed=st.integers(0, 2**16),
)
def test_property_the_error_stays_within_what_is_promised(name, numbers, dtype, size, seed):
    kind = FORMATS[name]
    made = torch.Generator().manual_seed(seed)
    value = (torch.randn(numbers, generator=made) * size).to(dtype)
    packed, scales = pack_reference(value, kind)
    assert (packed.shape, packed.dtype) == (value.shape, kind.dtype)
    x = value.float()
    error = (unpack_reference(packed, scales, torch.float32) - x).abs()
    if kind.limit is None:
        bound = x.abs() * torch.finfo(kind.dtype).eps / 2 + 2.0**-25
    else:
        assert scales.shape == (-(-numbers // SCALE_BLOCK),)
        unit = scales.repeat_interleave(SCALE_BLOCK)[:numbers]
        bound = unit / 2 if name == "int8" else x.abs() / 16 + unit * 2.0**-10
    assert (error <= bound * 1.0001).all()


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3"])
def test_zeros_stay_zero_and_the_largest_of_a_run_is_kept(name):
    value = torch.zeros(300)
    value[130] = -3.5
    packed, scales = pack_reference(value, FORMATS[name])
    back = unpack_reference(packed, scales, torch.float32)
    torch.testing.assert_close(back, value, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_does_not_pass_for_finite(name, bad):
    value = torch.ones(300)
    value[140] = bad
    back = unpack_reference(*pack_reference(value, FORMATS[name]), torch.float32)
    assert torch.equal(back[:128], value[:128])
    assert torch.equal(back[256:], value[256:])
    assert not back[128:256].isfinite().any()


def test_bytes_are_those_of_numbers_and_scales():
    value = torch.randn(3, 100)
    for name, each in [("bf16", 600), ("fp16", 600), ("fp8_e4m3", 312), ("int8", 312)]:
        ring = Packed.empty(FORMATS[name], 2, value)
        assert ring.nbytes == 2 * each == 2 * FORMATS[name].nbytes(300)
        assert torch.equal(ring.unpack(), torch.zeros(2, 3, 100))
        assert format_of(ring.data, ring.scales) is FORMATS[name]


def test_a_value_is_packed_only_where_that_makes_it_smaller():
    assert format_for(None, torch.float32) is None
    assert format_for("int8", torch.bfloat16) is FORMATS["int8"]
    assert format_for("bf16", torch.float16) is None
    assert format_for("fp16", torch.float16) is None
    assert format_for("int8", torch.int64) is None
    with pytest.raises(ValueError, match="no storage format 'int4'; there are bf16, fp16"):
        format_for("int4", torch.float32)
    with pytest.raises(ValueError, match="no storage format keeps"):
        format_of(torch.zeros(2, dtype=torch.int8), None)
