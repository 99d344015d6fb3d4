"""A small DiT with the three kinds of branch, and tools to run policies and loops on it.

What the loops do by hand goes through the modules' own `forward`; what ditcache does goes through
the graph. Both count what really ran by an op in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ditcache
import torch
from ditcache.passes.policies import Subject, make
from ditcache.passes.selectors import outline
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.helpers import compiled, count, counting, euler, first, grid, noise, prompt

__all__ = ["Dit", "compare", "denoise", "grid", "replaced", "run", "subject_of"]
DIM = 16
STEPS = 12


class Attention(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        made = F.scaled_dot_product_attention(self.q(x), self.k(context), self.v(context))
        return self.o(count(made, self.name))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(count(self.up(x), "mlp")))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM, elementwise_affine=False)
        self.modulation = nn.Linear(DIM, 6 * DIM)
        self.attention, self.cross, self.mlp = Attention("attention"), Attention("cross"), Mlp()

    def forward(self, x: Tensor, temb: Tensor, text: Tensor) -> Tensor:
        s1, b1, g1, s2, b2, g2 = self.modulation(temb)[:, None].chunk(6, -1)
        inner = self.norm(x) * (1 + s1) + b1
        x = x + g1 * self.attention(inner, inner)
        x = x + self.cross(self.norm(x), text)
        return x + g2 * self.mlp(self.norm(x) * (1 + s2) + b2)


class Dit(nn.Module):
    """[B, N, 16], [B], [B, L, 16] -> [B, N, 16]."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.time, self.proj = nn.Linear(4, DIM), nn.Linear(DIM, DIM)
            self.blocks = nn.ModuleList(Block() for _ in range(blocks))
            self.out = nn.Linear(DIM, DIM)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        rates = torch.arange(1.0, 5.0, device=timestep.device)
        temb = self.time((timestep[:, None] * rates).sin())
        h = self.proj(x)
        for block in self.blocks:
            h = block(h, temb, text)
        return self.out(h)


def denoise(model: Callable[..., Any], seed: int = 0, at: Callable[[int], None] | None = None):
    """One generation of 12 steps; `at(step)` hears of each step before it runs."""
    text = prompt(seed)

    def forward(x: Tensor, t: Tensor, i: int) -> Tensor:
        if at is not None:
            at(i)
        return first(model(x, t.expand(1), text))

    return euler(forward, noise(seed), grid(STEPS))


def subject_of(made: Any, timesteps: Sequence[float] | None = None) -> Subject:
    """What a policy without measurements plans for, from a compiled model that was called."""
    from ditcache.runtime.session import session_of

    session = session_of(made)
    assert session is not None
    times = grid(STEPS).tolist() if timesteps is None else list(timesteps)
    graph = session.executors[0].graph
    return Subject(session.signature or "", tuple(times), outline(graph))


def run(model: nn.Module, policy: str, seeds: int = 2, **options: Any):
    """Results of ditcache under a policy, what ran by mark in the last generation, and the plan."""
    made = compiled(model, policy="none")
    made(noise(), torch.ones(1), prompt())
    plan = make(policy, options).plan(subject_of(made))
    ditcache.apply(made, plan)
    results = []
    for seed in range(seeds):
        with counting() as ran:
            results.append(denoise(made, seed))
        ran = dict(ran)
    assert not ditcache.summary(made).fallbacks
    return results, ran, plan


def compare(ours: Sequence[Tensor], theirs: Sequence[Tensor], uncached: Sequence[Tensor], tol=0.0):
    """Equal to the loop by hand, and not to the uncached model."""
    for a, b, c in zip(ours, theirs, uncached, strict=True):
        torch.testing.assert_close(a, b, rtol=tol, atol=tol)
        assert (a - c).abs().max() > 1e-4, "nothing was skipped"


@contextmanager
def replaced(*pairs: tuple[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Modules whose forward is another for a while; each is called with the own one first."""
    own = [(module, module.forward) for module, _ in pairs]
    for (module, forward), (_, other) in zip(own, pairs, strict=True):
        module.forward = lambda *a, _f=forward, _o=other, **k: _o(_f, *a, **k)
    try:
        yield
    finally:
        for module, forward in own:
            module.forward = forward
