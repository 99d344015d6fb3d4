"""The write kernel's host path: entries, sketches, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from ditcache.kernels.formats import FORMATS, Packed, pack_reference, unpack_reference
from ditcache.kernels.write import sketch_reference, write
from ditcache.runtime.sketch import signs_of, sketch_rows

CUDA = pytest.mark.gpu


@pytest.mark.parametrize("name", [None, *FORMATS])
def test_one_entry_is_written_and_the_others_stay(name):
    value = torch.randn(5, 60).t()  # not contiguous
    slot = torch.zeros(3, 60, 5) if name is None else Packed.empty(FORMATS[name], 3, value)
    write(value, slot, 1)
    entries = list(slot) if name is None else [slot.entry(k) for k in range(3)]
    expected = value
    if name is not None:
        expected = unpack_reference(*pack_reference(value, FORMATS[name]), value.dtype)
    assert torch.equal(entries[1], expected)
    assert not entries[0].any()
    assert not entries[2].any()


@pytest.mark.parametrize(("shape", "rows"), [((2, 700), 2), ((3, 5, 512), 3), ((1, 4000), 1)])
def test_the_sketch_is_the_recorders(shape, rows):
    value = torch.randn(shape)
    signs = signs_of(value.numel() // rows, 512, value.device)
    slot = torch.zeros(2, *shape)
    made = write(value, slot, 0, signs=signs, rows=rows, width=512)
    assert torch.equal(made.flatten(), sketch_rows(value, 512, rows))
    assert torch.equal(slot[0], value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(0), torch.ones(2, 0)), "empty value"),
        ((torch.ones(2).int(), torch.ones(2, 2)), "floating-point value"),
        ((torch.ones(2), None), "nothing to do"),
        ((torch.ones(3), torch.ones(2, 2)), "entries are"),
        ((torch.ones(2), torch.ones(2, 2), 2), "position 2"),
        ((torch.ones(2), torch.ones(2, 2).t()), "contiguous slot"),
        ((torch.ones(2), torch.ones(2, 2).to(torch.int8)), "floating-point slot or a packed"),
        ((torch.ones(2), torch.ones(2, 2, device="meta")), "needs the slot on cpu"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        write(*arguments)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"signs": torch.ones(6)}, "int8 signs"),
        ({"signs": torch.ones(2, dtype=torch.int8)}, "int8 signs for 6 numbers"),
        ({"signs": torch.ones(6, dtype=torch.int8), "rows": 4}, "as 4 rows"),
        ({"signs": torch.ones(6, dtype=torch.int8), "width": 0}, "at least one number"),
    ],
)
def test_signs_that_do_not_fit_are_named(more, message):
    with pytest.raises(ValueError, match=message):
        write(torch.ones(2, 3), None, **more)


def test_fp8_on_hardware_without_it_is_refused(monkeypatch):
    from ditcache.kernels import launch

    monkeypatch.setattr(launch, "_capability", lambda _: (8, 0))
    with pytest.raises(ValueError, match=r"8\.9 or newer, cuda:0 has 8\.0; use the format int8"):
        launch.needs_fp8(torch.float8_e4m3fn, torch.device("cuda:0"))
    launch.needs_fp8(torch.int8, torch.device("cuda:0"))
    launch.needs_fp8(torch.float8_e4m3fn, torch.device("cpu"))


@CUDA
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 11), (2, 4097, 65)])
def test_packing_on_a_device(name, dtype, shape):
    """Scales to the bit; numbers to a unit, since a product and a rounding may be fused."""
    if name == "fp8_e4m3" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no hardware for fp8-e4m3")
    value = torch.randn(shape, device="cuda").to(dtype)
    slot = Packed.empty(FORMATS[name], 2, value)
    write(value, slot, 1)
    numbers, scales = pack_reference(value, FORMATS[name])
    assert scales is None or torch.equal(slot.scales[1], scales)
    unit = {"int8": (0.0, 1.0), "fp8_e4m3": (2**-3, 2**-9)}.get(name, (0.0, 0.0))
    got = slot.data[1].float()
    torch.testing.assert_close(got, numbers.float(), rtol=unit[0], atol=unit[1])
    assert not slot.data[0].float().any()


@CUDA
@pytest.mark.parametrize("name", [None, "int8", "bf16"])
@pytest.mark.parametrize(
    ("shape", "width"), [((2, 4096, 64), 512), ((3, 700), 512), ((2, 999), 96)]
)
def test_a_sketch_on_a_device(name, shape, width):
    value = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    slot = None if name is None else Packed.empty(FORMATS[name], 2, value.float())
    rows = shape[0]
    signs = signs_of(value.numel() // rows, width, value.device)
    made = [write(value, slot, 0, signs=signs, rows=rows, width=width) for _ in range(3)]
    expected = sketch_reference(value, signs, rows, width)
    torch.testing.assert_close(made[0], expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
