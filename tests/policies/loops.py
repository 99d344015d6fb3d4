"""Published rules, written by hand in plain eager code: what the zoo is compared with.

Each loop patches the modules of a live model and sees nothing of ditcache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .models import denoise, replaced


class Now:
    """The step under way."""

    def __init__(self) -> None:
        self.step = 0

    def __call__(self, step: int) -> None:
        self.step = step


class Layer:
    """One module's cache: Taylor factors by backward differences, as TaylorSeer keeps them."""

    def __init__(self, now: Now, computes: Callable[[int], bool], order: int = 0) -> None:
        self.now, self.computes, self.order = now, computes, order
        self.factors: list[Tensor] = []
        self.last = 0

    def __call__(self, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        step = self.now.step
        if self.computes(step):
            made = [forward(*args, **kwargs)]
            for factor in self.factors[: self.order]:
                made.append((made[-1] - factor) / (step - self.last))
            self.factors, self.last = made, step
            return made[0]
        if not self.order:
            return self.factors[0]
        gap = step - self.last
        terms = [f * (gap**i / math.factorial(i)) for i, f in enumerate(self.factors)]
        return torch.stack(terms).sum(0)


def layers(
    model: nn.Module,
    modules: Iterable[tuple[nn.Module, Callable[[int], bool]]],
    order: int = 0,
    seeds: int = 2,
) -> list[Tensor]:
    """Each module computes at the steps that its rule names and is forecast at the others."""
    modules, results = list(modules), []
    for seed in range(seeds):
        now = Now()
        pairs = [(module, Layer(now, rule, order)) for module, rule in modules]
        with replaced(*pairs):
            results.append(denoise(model, seed, now))
    return results


class Run:
    """Blocks m to n-1 as one: their residual is kept, and added where `computes` says no.

    `computes(input)` decides once, where the first of them is called.
    """

    def __init__(
        self, blocks: nn.ModuleList, m: int, n: int, computes: Callable[[Tensor], bool], order=0
    ) -> None:
        self.blocks, self.first, self.final = blocks, blocks[m], blocks[n - 1]
        self.members = [blocks[i] for i in range(m, n)]
        self.computes, self.order = computes, order
        self.entered: Tensor | None = None
        self.hit = False
        self.history: list[tuple[int, Tensor]] = []
        self.step = -1

    def pairs(self) -> list[tuple[nn.Module, Any]]:
        return [(b, lambda f, x, *a, _b=b: self.call(_b, f, x, *a)) for b in self.members]

    def call(self, block: nn.Module, forward: Any, x: Tensor, *rest: Any) -> Tensor:
        if block is self.first:
            self.entered, self.step = x, self.step + 1
            self.hit = not self.computes(x)
        assert self.entered is not None
        if self.hit:
            return self.entered + self.forecast() if block is self.final else x
        out = forward(x, *rest)
        if block is self.final:
            self.history.insert(0, (self.step, out - self.entered))
        return out

    def forecast(self) -> Tensor:
        if not self.order:
            return self.history[0][1]
        held = self.history[: self.order + 1]
        differences, total, gap = [y for _, y in held], held[0][1], self.step - held[0][0]
        for i in range(1, len(held)):
            distance = [held[k][0] - held[k + 1][0] for k in range(len(differences) - 1)]
            differences = [
                (differences[k] - differences[k + 1]) / distance[k] for k in range(len(distance))
            ]
            total = total + differences[0] * (gap**i / math.factorial(i))
        return total


def runs(model: Any, ranges: Iterable[tuple[int, int, Callable[[int], bool]]], order=0, seeds=2):
    """Runs of blocks that compute at the steps that their rule names."""
    ranges, results = list(ranges), []
    for seed in range(seeds):
        now = Now()
        pairs = []
        for m, n, rule in ranges:
            pairs += Run(model.blocks, m, n, at(now, rule), order).pairs()
        with replaced(*pairs):
            results.append(denoise(model, seed, now))
    return results


def at(now: Now, rule: Callable[[int], bool]) -> Callable[[Tensor], bool]:
    """A rule on steps as one that a Run asks."""
    return lambda _: rule(now.step)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().mean() / b.abs().mean()).item()
