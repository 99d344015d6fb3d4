"""Counting of multiply-accumulates: eager, in attention, in compiled code."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.macs import MacCounter, counted


def test_macs_are_half_the_flops_of_the_counter():
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Conv1d(4, 5, 3))
    inputs = torch.randn(2, 4, 8)
    with FlopCounterMode(display=False) as flops:
        model(inputs)
    _, macs = counted(lambda: model(inputs))
    assert macs == flops.get_total_flops() // 2 > 0


def test_macs_of_attention_count_on_the_cpu():
    q, k, v = (torch.randn(2, 3, n, 16) for n in (5, 7, 7))
    _, macs = counted(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert macs == 2 * 3 * (5 * 7 * 16) * 2


def test_compiled_code_runs_and_is_counted():
    runs = []

    def backend(module, _):
        runs.append(module)
        return module.forward

    inputs = torch.randn(3, 4)
    model = torch.compile(torch.nn.Linear(4, 5), backend=backend)
    with MacCounter() as counter:
        model(inputs)
    assert len(runs) == 1
    assert counter.total == 3 * 4 * 5
