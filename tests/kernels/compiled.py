"""Run by test_compiled.py: compile each kernel for a device that is not there, one line for each.

A process of its own, since Triton compiles nothing in one that interprets.
"""

from __future__ import annotations

import sys
from itertools import product

import triton
from ditcache.kernels.clock import clock_kernel
from ditcache.kernels.forecast import forecast_kernel
from ditcache.kernels.probe import distance_kernel, verdict_kernel
from ditcache.kernels.write import write_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

STORED = {"fp32": None, "bf16": None, "fp16": None, "i8": 127.0, "fp8e4nv": 448.0}


def compiled(name, kernel, capability, pointers, numbers, constants):
    """Pointers by type, None for those not given; numbers by type; constants by value.

    A number that is 1 where a kernel is launched is a constant too: each kernel is compiled for
    that as well, and for what is divisible by 16, as the memory of tensors mostly is.
    """
    if "bf16" in name:
        wide = build(kernel, capability, pointers, numbers, constants, divisible=True)
        assert ".local" not in wide, "registers suffice"
        assert "ld.global.v4" in wide or "ld.global.v2" in wide, "neighbours are read together"
    if numbers:
        ones = {k: 1 for k, kind in numbers.items() if kind.startswith("i")}
        others = {k: kind for k, kind in numbers.items() if k not in ones}
        build(kernel, capability, pointers, others, constants | ones)
    ptx = build(kernel, capability, pointers, numbers, constants)
    print("ok", name, flush=True)
    return ptx


def build(kernel, capability, pointers, numbers, constants, *, divisible=False):
    signature = {k: "constexpr" if v is None else f"*{v}" for k, v in pointers.items()}
    signature |= numbers | dict.fromkeys(constants, "constexpr")
    order = [p.name for p in kernel.params]
    values = {k: None for k, v in pointers.items() if v is None} | constants
    given = [*(k for k, v in pointers.items() if v), *numbers]
    known = [k for k in given if divisible and numbers.get(k) != "fp32"]
    hints = {(order.index(k),): [["tt.divisibility", 16]] for k in known}
    source = ASTSource(kernel, {k: signature[k] for k in order}, constexprs=values, attrs=hints)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert f"sm_{capability}" in made.asm["ptx"]
    return made.asm["ptx"]


def forecasts(capability, stored):
    scales = "fp32" if STORED[stored] else None
    value = "bf16" if scales else stored
    for row, add, size in product((None, "i32"), (None, value), ("i32", "i64")):
        if (row is None) != (add is None):
            continue
        pointers = {"slot": stored, "scales": scales, "weights": "fp32", "row": row, "add": add}
        ptx = compiled(
            f"forecast {stored} {row} {size}",
            forecast_kernel(),
            capability,
            pointers | {"out": value},
            {"n": size, "rows": "i32"},
            {"K": 3, "SCALE_BLOCK": 128, "RUNS": 8},
        )
        assert "fma.rn.f32" in ptx, "accumulates in fp32"


def writes(capability, stored):
    limit = STORED[stored]
    for value, sketch in (("fp32", None), ("bf16", "i8"), ("fp16", None)):
        compiled(
            f"write {value} to {stored}",
            write_kernel(),
            capability,
            {
                "value": value,
                "slot": stored,
                "scales": "fp32" if limit else None,
                "signs": sketch,
                "parts": "fp32" if sketch else None,
            },
            {"size": "i32"},
            {
                "LIMIT": limit,
                "FLOATS": stored != "i8",
                "RUNS": 4 if sketch else 8,
                "SCALE_BLOCK": 128,
                "TILES": 8 if sketch else 1,
            },
        )


def sketches(capability):
    absent = ("slot", "scales")
    compiled(
        "sketch bf16",
        write_kernel(),
        capability,
        dict.fromkeys(absent) | {"value": "bf16", "signs": "i8", "parts": "fp32"},
        {"size": "i32"},
        {"LIMIT": None, "FLOATS": True, "RUNS": 4, "SCALE_BLOCK": 128, "TILES": 8},
    )


def probes(capability, stored):
    scales = "fp32" if STORED[stored] else None
    for square, weights in ((True, "fp32"), (False, None)):
        compiled(
            f"distance {stored} {weights}",
            distance_kernel(),
            capability,
            {
                "value": "bf16",
                "reference": stored,
                "scales": scales,
                "weights": weights,
                "parts": "fp32",
            },
            {"n": "i32"},
            {
                "K": 2 if weights else 1,
                "SQUARE": square,
                "OF_VALUE": square,
                "SCALE_BLOCK": 128,
                "RUNS": 8,
                "ROUNDS": 3,
            },
        )


def verdicts(capability):
    for flag, on in ((None, False), ("i32", True), ("i32", False)):
        compiled(
            f"verdict {flag} {on}",
            verdict_kernel(),
            capability,
            {
                "parts": "fp32",
                "figures": "fp32",
                "limit": "fp32" if flag else None,
                "flag": flag,
                "running": "fp32" if flag else None,
            },
            {"n": "fp32", "count": "i32"},
            {"SQUARE": on, "ACCUMULATE": on, "STICKY": on, "PARTS": 1024},
        )


def clocks(capability):
    for timestep, uniform in (("fp32", True), ("i64", True), ("bf16", False), ("fp64", True)):
        compiled(
            f"clock {timestep}",
            clock_kernel(),
            capability,
            {
                "timestep": timestep,
                "grid": "fp32",
                "within": "fp32",
                "flag": "i32" if uniform else None,
                "dial": "i32",
            },
            {"n": "i32", "steps": "i32"},
            {"UNIFORM": uniform, "BLOCK": 1024, "ROUNDS": 1 if uniform else 4},
        )


if __name__ == "__main__":
    target = int(sys.argv[1])
    for number in STORED:
        if number == "fp8e4nv" and target < 89:
            continue
        forecasts(target, number)
        writes(target, number)
        probes(target, number)
    sketches(target)
    verdicts(target)
    clocks(target)
