"""The bench of the kernels, as far as it runs without a device."""

from __future__ import annotations

import pytest
import torch
from ditcache.bench import kernels
from rich.console import Console


def a_millisecond(call, flush):
    call()
    return 1e-3


def test_every_kernel_agrees_with_the_expression_that_inductor_gets(capsys):
    rows = []
    for case in kernels.cases(1024, torch.device("cpu"), fp8=True):
        row = kernels.measure(case, a_millisecond, lambda f: f, flush=True)
        assert row["agrees"], case.name
        assert row["ours"] == row["inductor"]
        assert row["ours"]["gb_s"] == pytest.approx(case.nbytes / 1e6, abs=0.1)
        rows.append({"size": "tiny", "of_copy": 0.5, **row})
    sizes = {row["kernel"]: row["bytes"] for row in rows}
    assert len(sizes) == len(rows) == 13
    assert sizes["forecast bf16 K=3 + residual"] == 5 * 2048
    assert sizes["forecast int8 K=3 to bf16"] == 3 * (1024 + 4 * 8) + 2048
    assert sizes["write int8 + sketch"] == 2048 + 1024 + 4 * 8 + 1024
    kernels.show({"copy_gb_s": 100.0, "rows": rows}, Console(width=120))
    assert capsys.readouterr().out.count("yes") == 13


def test_what_fails_is_a_result():
    case = next(kernels.cases(1024, torch.device("cpu"), fp8=False))

    def fails(*_):
        raise RuntimeError("no such op\nand more")

    row = kernels.measure(case, a_millisecond, lambda _: fails, flush=False)
    assert row["inductor"] == {"error": "RuntimeError: no such op"}
    assert "us" in row["ours"]


def test_a_copy_moves_its_bytes_twice_and_a_tick_is_in_microseconds():
    cpu = torch.device("cpu")
    assert kernels.copy_bandwidth(a_millisecond, cpu, 1 << 10) == pytest.approx(2**11 / 1e6)
    assert kernels.tick(a_millisecond, cpu) == pytest.approx(1000.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so(capsys):
    assert kernels.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
