"""The kernels against the measured copy bandwidth, and what Inductor makes of the same expression.

    python -m bench.kernels --out bench/results/kernels.json

Needs a CUDA device; a minute or two. Bytes are those that have to be moved at least, each read or
written once, so GB/s over those of a copy is the share of what the memory can do. Two sizes: the
latents of Flux at 1024x1024, which stay in the L2 cache (timed inside a captured graph, as they
run), and one far beyond it (timed with the cache flushed).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from ditcache.kernels.clock import clock, clock_reference, dial_on, grid_on
from ditcache.kernels.forecast import forecast
from ditcache.kernels.formats import FORMATS, SCALE_BLOCK, SMALLEST_SCALE, Format, Packed
from ditcache.kernels.launch import FP8_CAPABILITY
from ditcache.kernels.probe import Norm, probe
from ditcache.kernels.write import write
from ditcache.runtime.recorder import SKETCH_WIDTH
from ditcache.runtime.sketch import signs_of
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .environment import environment, write_json

SIZES = {"beyond L2": 1 << 26, "flux-1024": 4096 * 64}
STEPS = 50
Seconds = Callable[[Callable[[], Any], bool], float]
"""How long a call takes on the device; told whether to flush the cache before it."""


@dataclass(frozen=True)
class Case:
    """One kernel on one size: `ours` runs it, `theirs(*inputs)` is the expression for Inductor.

    Both give the same tensors. `nbytes`: what has to be read and written at least.
    """

    name: str
    nbytes: int
    ours: Callable[[], Sequence[Tensor]]
    theirs: Callable[..., Sequence[Tensor]]
    inputs: tuple[Tensor, ...]


def cases(n: int, device: torch.device, *, fp8: bool) -> Iterator[Case]:
    """All kernels on values of n numbers, a multiple of 128; one at a time, to free the memory."""
    for k in (1, 3, 4):
        yield _forecast(n, device, k)
    yield _forecast(n, device, 3, add=True)
    packed = [FORMATS["int8"], *([FORMATS["fp8_e4m3"]] if fp8 else [])]
    for kind in packed:
        yield _forecast_packed(n, device, kind)
    for kind in (FORMATS["bf16"], *packed):
        yield _write(n, device, kind, sketched=False)
    yield _write(n, device, FORMATS["int8"], sketched=True)
    yield _sketch(n, device)
    yield _probe(n, device, "l1", 1)
    yield _probe(n, device, "l2", 3)


def _forecast(n: int, device: torch.device, k: int, *, add: bool = False) -> Case:
    slot = torch.randn(k, n, device=device, dtype=torch.bfloat16)
    table = torch.randn(STEPS, k, device=device)
    row = torch.tensor([7], dtype=torch.int32, device=device)
    more = torch.randn(n, device=device, dtype=torch.bfloat16) if add else None

    def theirs(slot: Tensor, table: Tensor, row: Tensor, *more: Tensor) -> list[Tensor]:
        w = table[row.long()][0]
        total = reduce(Tensor.add, (w[i] * slot[i].float() for i in range(k)))
        return [sum((m.float() for m in more), total).to(slot.dtype)]

    return Case(
        f"forecast bf16 K={k}{' + residual' if add else ''}",
        2 * n * (k + 1 + add),
        lambda: [forecast(slot, table, row=row, add=more)],
        theirs,
        (slot, table, row) if more is None else (slot, table, row, more),
    )


def _forecast_packed(n: int, device: torch.device, kind: Format) -> Case:
    k = 3
    value = torch.randn(n, device=device, dtype=torch.bfloat16)
    slot = Packed.empty(kind, k, value)
    for i in range(k):
        write(torch.randn(n, device=device, dtype=torch.bfloat16), slot, i)
    table = torch.randn(STEPS, k, device=device)
    row = torch.tensor([7], dtype=torch.int32, device=device)
    assert slot.scales is not None

    def theirs(data: Tensor, scales: Tensor, table: Tensor, row: Tensor) -> list[Tensor]:
        w = table[row.long()][0]
        entries = data.float().view(k, -1, SCALE_BLOCK) * scales[:, :, None]
        total = reduce(Tensor.add, (w[i] * entries[i] for i in range(k)))
        return [total.flatten().to(torch.bfloat16)]

    return Case(
        f"forecast {kind.name} K={k} to bf16",
        slot.nbytes + 2 * n,
        lambda: [forecast(slot, table, row=row)],
        theirs,
        (slot.data, slot.scales, table, row),
    )


def _write(n: int, device: torch.device, kind: Format, *, sketched: bool) -> Case:
    value = torch.randn(n, device=device, dtype=torch.bfloat16 if kind.scaled else torch.float32)
    slot = Packed.empty(kind, 3, value)
    signs = signs_of(n, SKETCH_WIDTH, device) if sketched else None

    def ours() -> list[Tensor]:
        made = write(value, slot, 1, signs=signs, width=SKETCH_WIDTH)
        parts = [slot.data[1], None if slot.scales is None else slot.scales[1], made]
        return [p for p in parts if p is not None]

    def theirs(value: Tensor, *signs: Tensor) -> list[Tensor]:
        given = [_sums(value, s) for s in signs]
        if kind.limit is None:
            return [value.to(kind.dtype), *given]
        runs = value.float().view(-1, SCALE_BLOCK)
        largest = torch.where(runs.isnan(), torch.inf, runs.abs()).amax(1)
        scales = (largest / kind.limit).clamp_min(SMALLEST_SCALE)
        numbers = (runs * scales.reciprocal()[:, None]).clamp(-kind.limit, kind.limit)
        numbers = numbers if kind.dtype.is_floating_point else numbers.round()
        return [numbers.flatten().to(kind.dtype), scales, *given]

    return Case(
        f"write {kind.name}{' + sketch' if sketched else ''}",
        value.nbytes + kind.nbytes(n) + (n if sketched else 0),
        ours,
        theirs,
        (value,) if signs is None else (value, signs),
    )


def _sketch(n: int, device: torch.device) -> Case:
    value = torch.randn(n, device=device, dtype=torch.bfloat16)
    signs = signs_of(n, SKETCH_WIDTH, device)

    def ours() -> list[Tensor]:
        made = write(value, None, signs=signs, width=SKETCH_WIDTH)
        return [] if made is None else [made]

    return Case("sketch bf16", 3 * n, ours, lambda v, s: [_sums(v, s)], (value, signs))


def _sums(value: Tensor, signs: Tensor) -> Tensor:
    return (value.float() * signs[: len(value)]).view(1, -1, SKETCH_WIDTH).sum(1)


def _probe(n: int, device: torch.device, norm: Norm, k: int) -> Case:
    value = torch.randn(n, device=device, dtype=torch.bfloat16)
    slot = torch.randn(k, n, device=device, dtype=torch.bfloat16)
    weights = torch.rand(k, device=device) if k > 1 else torch.ones(1, device=device)

    def theirs(value: Tensor, slot: Tensor, weights: Tensor) -> list[Tensor]:
        r = reduce(Tensor.add, (weights[i] * slot[i].float() for i in range(k)))
        pair = value.float() - r, r
        if norm == "l1":
            return [torch.stack([x.abs().mean() for x in pair])]
        return [torch.stack([x.square().mean().sqrt() for x in pair])]

    return Case(
        f"probe {norm} bf16 K={k}",
        2 * n * (k + 1),
        lambda: [probe(value, slot, weights=weights, norm=norm)],
        theirs,
        (value, slot, weights),
    )


def measure(
    case: Case, seconds: Seconds, compiler: Callable[[Any], Any], *, flush: bool
) -> dict[str, Any]:
    """Check that a kernel agrees with its expression, and time both; `compiler` makes the other."""
    expected = case.theirs(*case.inputs)
    agrees = all(_near(a, b) for a, b in zip(case.ours(), expected, strict=True))
    compiled = compiler(case.theirs)
    row: dict[str, Any] = {"kernel": case.name, "bytes": case.nbytes, "agrees": agrees}
    for who, call in (("ours", case.ours), ("inductor", lambda: compiled(*case.inputs))):
        try:
            took = seconds(call, flush)
        except Exception as failed:  # one that cannot be compiled or captured is a result
            row[who] = {"error": f"{type(failed).__name__}: {failed}".splitlines()[0]}
            continue
        row[who] = {"us": round(took * 1e6, 2), "gb_s": round(case.nbytes / took / 1e9, 1)}
    return row


def _near(got: Tensor, expected: Tensor) -> bool:
    """Equal but for the rounding of the type: of packed numbers a unit, where fused or not."""
    loose = {torch.int8: (0.0, 1.0), torch.float8_e4m3fn: (2**-3, 2**-9)}
    rtol, atol = loose.get(got.dtype, (2**-7, 1e-3))
    return bool(torch.allclose(got.float(), expected.float(), rtol=rtol, atol=atol))


def copy_bandwidth(seconds: Seconds, device: torch.device, nbytes: int = 1 << 30) -> float:
    """GB/s of a copy, read and write counted."""
    source = torch.zeros(nbytes, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / seconds(lambda: target.copy_(source), True) / 1e9


def tick(seconds: Seconds, device: torch.device) -> float:
    """Microseconds of one tick of the device's clock."""
    steps = [1000.0 - 20 * i for i in range(STEPS)]
    grid, dial = grid_on(device, steps), dial_on(device)
    timestep = torch.full((2,), steps[0], device=device)
    clock(timestep, grid, dial)
    check = dial_on("cpu")
    clock_reference(timestep.cpu(), grid_on("cpu", steps), check)
    if dial.state.tolist() != check.state.tolist():
        raise RuntimeError(f"the clock says {dial.state.tolist()}, not {check.state.tolist()}")
    return seconds(lambda: clock(timestep, grid, dial), False) * 1e6


def on_device(call: Callable[[], Any], flush: bool) -> float:
    """Median seconds of a call: after a flush of the cache, or replayed from a captured graph."""
    from triton.testing import do_bench, do_bench_cudagraph

    call()  # compiles
    timer = do_bench if flush else do_bench_cudagraph
    milliseconds: Any = timer(call, return_mode="median")  # annotated for all return modes at once
    return milliseconds / 1e3


def show(document: dict[str, Any], console: Console) -> None:
    """The table of all rows."""
    table = Table(title=f"GB/s; a copy moves {document['copy_gb_s']:.0f}")
    for heading in ("size", "kernel", "us", "GB/s", "of a copy", "Inductor us", "agrees"):
        table.add_column(heading, justify="right")
    for row in document["rows"]:
        ours, other = row["ours"], row["inductor"]
        texts = [str(ours.get("us", "error")), str(ours.get("gb_s", "")), f"{row['of_copy']:.0%}"]
        texts += [str(other.get("us", "error")), "yes" if row["agrees"] else "NO"]
        table.add_row(row["size"], row["kernel"], *texts)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse options, measure, print and write; exit status 2 without a CUDA device."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the large size only")
    parser.add_argument("--out", type=Path, help="JSON file, written after each kernel")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"bench.kernels needs a CUDA device; torch {torch.__version__} finds none.",
              file=sys.stderr)  # fmt: skip
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    fp8 = torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    document: dict[str, Any] = {
        "environment": environment("bench.kernels"),
        "copy_gb_s": round(copy_bandwidth(on_device, device), 1),
        "clock_us": round(tick(on_device, device), 2),
        "rows": [],
    }
    for size, n in list(SIZES.items())[: 1 if given.quick else None]:
        for case in cases(n, device, fp8=fp8):
            row = measure(case, on_device, torch.compile, flush=size != "flux-1024")
            share = row["ours"].get("gb_s", 0.0) / document["copy_gb_s"]
            document["rows"].append({"size": size, "numbers": n, "of_copy": round(share, 3)} | row)
            if given.out:
                write_json(given.out, document)
    show(document, Console(width=max(Console().width, 110)))
    return 0 if all(row["agrees"] for row in document["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
