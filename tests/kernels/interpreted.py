"""Run by the tests beside it in a process with TRITON_INTERPRET=1: one line for each case.

The argument names the kernel. What runs is the wrapper's CUDA path, on tensors of the host.
"""

from __future__ import annotations

import itertools
import sys

import torch
from ditcache.kernels import clock, forecast, probe, write
from ditcache.kernels.formats import FORMATS, Packed, pack_reference

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1,), (7,), (3, 5, 11), (1024,), (2, 1023), (1, 1, 1, 1025)]


def close(got, expected, dtype, eps=2.0):
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    if dtype != torch.float32:
        tolerance = {"rtol": eps * torch.finfo(dtype).eps, "atol": 1e-3}
    torch.testing.assert_close(got, expected, **tolerance)


def packed_ring(kind, dtype, history, shape):
    ring = Packed.empty(FORMATS[kind], history, torch.empty(shape, dtype=dtype))
    for k in range(history):
        write.write_reference(torch.randn(shape).to(dtype), ring, k)
    return ring


def between(shape, dtype):
    """A tensor with room on both sides, and a check that nobody writes there."""
    whole = torch.full((64 + int(torch.Size(shape).numel()) + 64,), 7.0).to(dtype)
    inside = whole[64:-64].view(shape)
    return inside, lambda: bool((whole[:64] == 7).all() and (whole[-64:] == 7).all())


def forecasts():
    for shape, dtype in itertools.product(SHAPES, FLOATS):
        for k in (1, 2, 3, 4):
            slot, weights = torch.randn(k, *shape).to(dtype), torch.randn(k)
            out, untouched = between(shape, dtype)
            forecast._forecast_triton(slot, weights, None, None, out)
            close(out, forecast.forecast_reference(slot, weights), dtype)
            assert untouched()
            print("ok", shape, dtype, k)
    table = torch.randn(5, 3)
    for kind, dtype in [(None, torch.float32), *itertools.product(FORMATS, FLOATS)]:
        shape = (3, 5, 11)
        slot = torch.randn(3, *shape) if kind is None else packed_ring(kind, dtype, 3, shape)
        add = torch.randn(shape).to(dtype).transpose(0, 2).contiguous().transpose(0, 2)
        for row in (-1, 0, 2, 4, 9):
            at = torch.tensor([row], dtype=torch.int32)
            out = torch.empty(shape, dtype=dtype)
            got = forecast._forecast_triton(slot, table, at, add, out)
            expected = forecast.forecast_reference(slot, table, row=at, add=add)
            assert got.dtype == dtype
            close(got, expected, dtype)
            print("ok", kind, dtype, row)


def values_for(kind, shape, dtype):
    """Random values; of fp8 its own, since the interpreter rounds to it wrongly."""
    if kind != "fp8_e4m3":
        value = torch.randn(shape).to(dtype)
        value.view(-1)[::3] *= 1e-3
        return value
    value = (torch.randn(shape) * 100).clamp(-448, 448).to(torch.float8_e4m3fn).to(torch.float32)
    value.view(-1)[::64] = 448.0
    return (value / 32).to(dtype)


def equal_rings(got, expected):
    """Equal numbers and scales; the interpreter cuts to bf16 where a device rounds."""
    rtol = 2**-7 if got.data.dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(got.data.float(), expected.data.float(), rtol=rtol, atol=0.0)
    assert (got.scales is None) == (expected.scales is None)
    if got.scales is not None:
        assert torch.equal(got.scales, expected.scales)


def writes():
    for kind, dtype, shape in itertools.product(FORMATS, FLOATS, [(1,), (3, 5, 11), (2, 1023)]):
        value = values_for(kind, shape, dtype)
        got, expected = (packed_ring(kind, dtype, 3, shape) for _ in range(2))
        for ring in (got, expected):
            ring.data.copy_(torch.ones(ring.data.shape))
            if ring.scales is not None:
                ring.scales.fill_(0.5)
        write._write_triton(value, got, 1)
        write.write_reference(value, expected, 1)
        equal_rings(got, expected)
        print("ok", kind, dtype, shape)
    for kind, position in itertools.product([None, "int8", "bf16"], range(3)):
        value = torch.randn(3, 47)
        rings = [
            torch.zeros(3, 3, 47) if kind is None else packed_ring(kind, torch.float32, 3, (3, 47))
            for _ in range(2)
        ]
        if kind is not None:
            rings[1].data.copy_(rings[0].data)
            if rings[0].scales is not None:
                rings[1].scales.copy_(rings[0].scales)
        write._write_triton(value, rings[0], position)
        write.write_reference(value, rings[1], position)
        if kind is None:
            assert torch.equal(rings[0], rings[1])
        else:
            equal_rings(rings[0], rings[1])
        print("ok", kind, position)
    for bad in (torch.nan, torch.inf, -torch.inf):
        value = torch.randn(300)
        value[200] = bad
        ring = Packed.empty(FORMATS["int8"], 1, value)
        write._write_triton(value, ring, 0)
        read = ring.entry(0)
        assert read[:128].isfinite().all()
        assert not read[128:256].isfinite().any()
        assert read[256:].isfinite().all()
        assert torch.equal(ring.data[0], pack_reference(value, FORMATS["int8"])[0])
        print("ok", bad)


def sketches():
    for kind, rows, size in itertools.product((None, "int8", "fp16"), (1, 3), (700, 768, 5000)):
        if size == 5000 and kind is not None:
            continue
        value = torch.randn(rows, size).to(torch.bfloat16)
        signs = (torch.randint(0, 2, (size + 100,)) * 2 - 1).to(torch.int8)
        ring, expected = None, None
        if kind is not None:
            ring, expected = (Packed.empty(FORMATS[kind], 2, value) for _ in range(2))
            write.write_reference(value, expected, 1)
        for width in (128, 512, 96):
            got = write._write_triton(value, ring, 1, signs=signs, rows=rows, width=width)
            close(got, write.sketch_reference(value, signs, rows, width), torch.float32)
            again = write._write_triton(value, ring, 1, signs=signs, rows=rows, width=width)
            assert torch.equal(got, again)
            if ring is not None:
                equal_rings(ring, expected)
            print("ok", kind, rows, size, width)
    write.PARTS, value = 2, torch.randn(2, 30_000)
    signs = (torch.randint(0, 2, (30_000,)) * 2 - 1).to(torch.int8)
    got = write._write_triton(value, None, 0, signs=signs, rows=2, width=512)
    close(got, write.sketch_reference(value, signs, 2, 512), torch.float32)
    print("ok", "more tiles than usual")


def probes():
    choices = itertools.product(("l1", "l2"), ("reference", "value"))
    for (norm, base), dtype in itertools.product(choices, FLOATS):
        for shape, kind in itertools.product([(1,), (3, 5, 11), (2, 1500)], (None, "int8", "bf16")):
            value = torch.randn(shape).to(dtype)
            ring = (
                torch.randn(2, *shape).to(dtype)
                if kind is None
                else packed_ring(kind, dtype, 2, shape)
            )
            limit = torch.tensor([1.2])
            verdicts = [probe.verdict_on("cpu") for _ in range(2)]
            how = {"norm": norm, "relative_to": base, "weights": torch.randn(2)}
            got = probe._probe_triton(
                value, ring, **how, limit=limit, verdict=verdicts[0], accumulate=False, sticky=True
            )
            expected = probe.distance_reference(value, ring, **how)
            torch.testing.assert_close(got, expected)
            probe.verdict_reference(expected, limit, verdicts[1], accumulate=False, sticky=True)
            assert torch.equal(verdicts[0].flag, verdicts[1].flag)
            torch.testing.assert_close(verdicts[0].running, verdicts[1].running)
            print("ok", norm, base, dtype, shape, kind)
    one = {"weights": None, "norm": "l1", "relative_to": "reference"}
    probe.PARTS, value, slot = 4, torch.randn(10 * 1024 + 5), torch.randn(1, 10 * 1024 + 5)
    loose = {"limit": None, "verdict": None, "accumulate": False, "sticky": False}
    got = probe._probe_triton(value, slot, **one, **loose)
    torch.testing.assert_close(got, probe.distance_reference(value, slot))
    print("ok", "more blocks than parts")
    for accumulate, sticky in itertools.product((False, True), (False, True)):
        got, expected = probe.verdict_on("cpu"), probe.verdict_on("cpu")
        limit = torch.tensor([0.7])
        for scale in (0.3, 0.5, 0.1, 2.0, 0.2, torch.nan, 0.3):
            reference = torch.randn(1, 40)
            value = reference[0] * (1 + scale)
            flags = {"accumulate": accumulate, "sticky": sticky}
            figures = probe._probe_triton(
                value, reference, **one, limit=limit, verdict=got, **flags
            )
            probe.verdict_reference(figures, limit, expected, **flags)
            assert torch.equal(got.flag, expected.flag), scale
            torch.testing.assert_close(got.running, expected.running, equal_nan=True)
        print("ok", accumulate, sticky)


def clocks():
    steps = [1000.0, 750.0, 500.0, 250.0, 100.0]
    walks = [
        steps,
        [1000.0, 752.0, 499.0, 250.0, 100.0, 1000.0, 750.0],
        [1000.0, 500.0, 250.0, 1000.0, 750.0],
        [750.0, 500.0, 1000.0],
        [1000.0, 1000.0, 750.0, 750.0, 500.0],
        [1000.0, float("nan"), 500.0],
        [1000.0, 750.0, 500.0, 250.0, 100.0, 50.0],
    ]
    grid = clock.grid_on("cpu", steps)
    for walk, first in itertools.product(walks, (0, 1, 9)):
        got, expected = clock.dial_on("cpu", first), clock.dial_on("cpu", first)
        for t in walk:
            timestep = torch.tensor([t, t, t])
            flag = None if first == 9 else torch.tensor([t == 500.0], dtype=torch.int32)
            clock._clock_triton(timestep, grid, got, flag)
            clock.clock_reference(timestep, grid, expected, flag)
            assert torch.equal(got.state, expected.state), (walk, first, t)
        print("ok", walk, first)
    made = [
        torch.tensor(1000),
        torch.tensor([1000, 1000]),
        torch.tensor([1000.0, 999.0]),
        torch.tensor([[0.0] * 600 + [1000.0] * 600]),
        torch.tensor([[0.0, 500.0, 1000.0]]),
        torch.tensor([1000.0] * 3000, dtype=torch.bfloat16),
        torch.tensor([1000.0] * 2999 + [torch.nan]),
        torch.tensor([[1000.0, torch.nan]]),
        torch.tensor([1000.0, 1000.0], dtype=torch.float64),
    ]
    for timestep in made:
        got, expected = clock.dial_on("cpu"), clock.dial_on("cpu")
        clock._clock_triton(timestep, grid, got, None)
        clock.clock_reference(timestep, grid, expected)
        assert torch.equal(got.state, expected.state), timestep
        print("ok", timestep.dtype, tuple(timestep.shape))


if __name__ == "__main__":
    torch.manual_seed(0)
    {
        "forecast": forecasts,
        "write": writes,
        "sketch": sketches,
        "probe": probes,
        "clock": clocks,
    }[sys.argv[1]]()
