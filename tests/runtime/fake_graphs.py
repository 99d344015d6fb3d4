"""CUDA graphs without CUDA: a replay runs the function again on what its inputs hold by then.

As in a real pool, the outputs of one graph are overwritten when another one of the pool replays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ditcache.runtime.capture import InputUse
from ditcache.runtime.captured import Captured
from ditcache.runtime.cuda_graphs import Graphs
from ditcache.runtime.stats import Stats
from torch import Tensor

WEIGHT, SLOT, KEPT, VALUE = InputUse.WEIGHT, InputUse.SLOT, InputUse.KEPT, InputUse.VALUE


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in leaves(v)] if isinstance(value, (tuple, list)) else []


def spoil(value: Tensor) -> None:
    value.fill_(float("nan") if value.is_floating_point() else -(2**30))


class FakeGraph:
    def __init__(self, api: FakeApi, pool: list[FakeGraph], run: Callable[[], Any]) -> None:
        self.api, self.pool, self.run = api, pool, run
        made = run()
        copies = {id(t): t.clone() for t in leaves(made)}
        self.outputs = [copies[id(t)] for t in leaves(made)]
        self.result = self._like(made, iter(self.outputs))
        self.freed = False
        for t in self.outputs:
            spoil(t)  # a capture runs nothing
        pool.append(self)

    def _like(self, value: Any, parts: Iterator[Tensor]) -> Any:
        if isinstance(value, Tensor):
            return next(parts)
        if isinstance(value, (tuple, list)):
            return type(value)(self._like(v, parts) for v in value)
        return value

    def replay(self) -> None:
        assert not self.freed
        for other in self.pool:
            for t in other.outputs:
                spoil(t)
        for mine, now in zip(self.outputs, leaves(self.run()), strict=True):
            mine.copy_(now)

    def reset(self) -> None:
        self.freed = True
        self.pool.remove(self)
        self.api.held_bytes -= self.api.size


class FakeApi:
    """Counts what is asked of it; `fail` is raised by the next captures, one after the other."""

    def __init__(self, size: int = 1000, live: Callable[[], list[Tensor]] = lambda: []) -> None:
        self.size = size
        self.live = live  # what the captured work writes in place: a capture runs nothing
        self.held_bytes = 0
        self.fail: list[Exception] = []
        self.pools: list[list[FakeGraph]] = []
        self.current = "stream 0"
        self.lent: list[tuple[str, int]] = []
        self.followed: list[tuple[str, str]] = []
        self.releases = 0
        self.devices: list[torch.device] = []

    def capture(self, pool: Any, run: Callable[[], Any]) -> tuple[FakeGraph, Any]:
        if self.fail:
            raise self.fail.pop(0)
        before = [(t, t.clone()) for t in self.live()]
        graph = FakeGraph(self, pool, run)
        for t, value in before:
            t.copy_(value)
        self.held_bytes += self.size
        return graph, graph.result

    def pool(self) -> list[FakeGraph]:
        self.pools.append([])
        return self.pools[-1]

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        self.devices.append(device)
        yield

    def stream(self) -> str:
        return self.current

    def follow(self, before: str) -> None:
        self.followed.append((before, self.current))

    def lend(self, memory: list[Tensor]) -> None:
        self.lent.append((self.current, len(memory)))

    def held(self) -> int:
        return self.held_bytes

    def release(self) -> None:
        self.releases += 1


class Runs:
    """`x @ w + c`, counting how often it runs outside of replays."""

    def __init__(self, api: FakeApi | None = None, budget: int | None = None) -> None:
        self.api = FakeApi() if api is None else api
        self.stats = Stats()
        self.graphs = Graphs(self.api, self.stats, budget)
        self.calls = 0

    def wrap(self, uses=(VALUE, WEIGHT, KEPT), name: str = "variant whole c") -> Captured:
        def run(x: Tensor, w: Tensor, c: Tensor) -> tuple[tuple[Tensor], tuple[Tensor]]:
            self.calls += 1
            y = x @ w + c
            return (y,), (y,)

        return Captured(run, uses, name, self.graphs)


def inputs(rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(rows, 4), torch.randn(4, 4), torch.randn(rows, 4)


def right(made, x: Tensor, w: Tensor, c: Tensor) -> bool:
    return torch.equal(made[0][0], x @ w + c)
