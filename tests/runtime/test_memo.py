"""The memo of hoisted values: what it takes for the same inputs, and when it forgets."""

from __future__ import annotations

import pytest
import torch
from ditcache.runtime import seen
from ditcache.runtime.memo import PrologueMemo


def memo(budget=1000):
    runs = []

    def run(*inputs):
        runs.append(len(inputs))
        numbers = [i.abs().sum() if isinstance(i, torch.Tensor) else i for i in inputs]
        return (sum(numbers) * torch.ones(10),)

    return PrologueMemo(run, budget), runs


def test_a_memo_tells_content_of_small_and_identity_of_large():
    made, runs = memo()
    a = torch.ones(3)
    assert [made.get([a])[1], made.get([a.clone()])[1]] == [False, True]
    big = torch.ones(50_000)
    assert [made.get([big])[1], made.get([big])[1], made.get([big.clone()])[1]] == [0, 1, 0]
    big.add_(1)
    assert not made.get([big])[1]
    weight = torch.nn.Parameter(torch.ones(3))
    assert [made.get([weight])[1], made.get([weight])[1]] == [False, True]
    assert not made.get([torch.nn.Parameter(torch.ones(3))])[1]
    assert len(runs) == 6


def test_weights_are_read_from_a_device_together(monkeypatch):
    """However many there are, a device is waited for once."""
    made, _ = memo()
    dtypes = (torch.float32, torch.bfloat16, torch.complex64)
    weights = [torch.nn.Parameter(torch.randn(n, 3, dtype=d)) for n in (1, 400) for d in dtypes]
    copies: list[int] = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: (copies.append(1), cpu(t))[1])
    made.get(weights)
    assert len(copies) == 1
    made.revalidate()
    assert len(copies) == 2
    assert made.get(weights)[1], "nothing has changed"
    weights[-1].data.mul_(1.5)  # counts no version
    made.revalidate()
    assert not made.get(weights)[1]
    assert [len(seen.glimpse(w)) * 4 for w in weights] == [len(g) for g in seen.glimpses(weights)]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.zeros(2), -torch.zeros(2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2), torch.zeros(1, 2)),
        (1, 1.0),
        (1, True),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float16)),
    ],
)
def test_a_memo_tells_apart_what_only_compares_equal(one, two):
    made, _ = memo()
    made.get([one])
    assert not made.get([two])[1]


@pytest.mark.parametrize("empty", [torch.empty(0), torch.empty(0, dtype=torch.bfloat16)])
def test_a_memo_takes_empty_and_expanded_tensors(empty):
    made, _ = memo()
    inputs = [empty, torch.tensor(1.0).expand(1), torch.tensor([1j])]
    assert [made.get(inputs)[1] for _ in range(2)] == [False, True]


def test_a_memo_forgets_with_its_inputs_and_stays_in_budget():
    made, _ = memo(budget=100)
    inputs = [torch.ones(50_000) for _ in range(4)]
    for value in inputs:
        made.get([value])
        assert made.nbytes <= 100
    del inputs, value
    assert (made.nbytes, len(made._entries)) == (0, 0)


def test_results_as_large_as_the_budget_are_kept_and_larger_ones_are_not():
    for budget, kept in ((40, True), (39, False)):
        made, _ = memo(budget)  # its results are ten fp32 numbers
        assert [made.get([1])[1], made.get([1])[1]] == [False, kept]


def test_a_memo_does_not_key_what_it_cannot():
    made, runs = memo()
    with torch.inference_mode():
        value = torch.ones(50_000)
        made.get([value])
        made.get([value])
    assert len(runs) == 2
