"""Import time and cold compile time, each in a fresh process with an empty Inductor cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

COMPILE = """
import time, torch
from bench.micro.conftest import small_flux, flux_inputs
model, inputs = small_flux({blocks}), flux_inputs()
started = time.perf_counter()
with torch.no_grad():
    if {how!r} == "compile_repeated_blocks":
        model.compile_repeated_blocks(fullgraph=True)
        called = model
    else:
        options = {{"policy": "exact"}} if {how!r} == "ditcache" else None
        called = torch.compile(model, backend={how!r}, options=options)
    called(**inputs)
print(time.perf_counter() - started)
"""


@pytest.mark.parametrize("module", ["torch", "ditcache"])
def test_import(benchmark: BenchmarkFixture, module: str) -> None:
    def load() -> None:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    benchmark.pedantic(load, rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("blocks", [8])
@pytest.mark.parametrize("how", ["ditcache", "inductor", "compile_repeated_blocks"])
def test_cold_compile(benchmark: BenchmarkFixture, how: str, blocks: int, tmp_path: Path) -> None:
    def compile_once() -> float:
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
        code = COMPILE.format(how=how, blocks=blocks)
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        return float(done.stdout.splitlines()[-1])

    seconds = benchmark.pedantic(compile_once, rounds=1)
    benchmark.extra_info["compile_seconds"] = seconds
    assert seconds > 0
