"""Small models, samplers and plans for the runtime's tests.

`count` is an op in the models' graphs that counts its runs in Python: what really computed is
seen from outside, not from ditcache's own figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ditcache
import torch
from ditcache import Plan, RegionSchedule
from torch import Tensor, nn

RAN: Counter[str] = Counter()


@torch.library.custom_op("ditcache_tests::count", mutates_args=())
def count(x: Tensor, what: str) -> Tensor:
    RAN[what] += 1
    return x.clone()


@count.register_fake
def _(x: Tensor, what: str) -> Tensor:
    return torch.empty_like(x)


count.register_autograd(lambda ctx, grad: (grad, None))


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Counts of the marked places that ran inside."""
    RAN.clear()
    yield RAN


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mod = nn.Linear(dim, 2 * dim)
        self.text = nn.Linear(dim, dim)
        self.up = nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, temb: Tensor, text: Tensor) -> Tensor:
        scale, shift = self.mod(temb)[:, None].chunk(2, dim=-1)
        keys = self.text(text)
        x = x + torch.softmax(x @ keys.transpose(1, 2), dim=-1) @ keys
        h = x * (1 + scale) + shift
        return x + self.down(torch.nn.functional.gelu(self.up(h)))


class Denoiser(nn.Module):
    """A transformer with text and time: [B, N, D], [B], [B, L, D] -> ([B, N, D],)."""

    def __init__(self, dim: int = 16, blocks: int = 2, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.time = nn.Sequential(nn.Linear(8, dim), nn.SiLU(), nn.Linear(dim, dim))
            self.pooled = nn.Linear(dim, dim)
            self.blocks = nn.ModuleList(Block(dim) for _ in range(blocks))
            self.out = nn.Linear(dim, dim)
        self.requires_grad_(False).eval()

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> tuple[Tensor]:
        temb = count(self.embed(timestep), "step")
        temb = temb + count(self.pooled(encoder_hidden_states.mean(1)), "condition")
        h = count(hidden_states, "body")
        for block in self.blocks:
            h = block(h, temb, encoder_hidden_states)
        return (self.out(h),)

    def embed(self, timestep: Tensor) -> Tensor:
        freqs = torch.arange(1, 5, dtype=torch.float32, device=timestep.device)
        angles = timestep.float()[:, None] * freqs
        both = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.time(both.to(self.time[0].weight.dtype))


def grid(steps: int = 12, shift: float = 3.0) -> Tensor:
    sigma = torch.linspace(1, 0, steps + 1)[:-1]
    return shift * sigma / (1 + (shift - 1) * sigma)


def prompt(seed: int = 0, batch: int = 1, length: int = 5, dim: int = 16, **to: Any) -> Tensor:
    g = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(batch, length, dim, generator=g).to(**to)


def noise(seed: int = 0, batch: int = 1, tokens: int = 6, dim: int = 16, **to: Any) -> Tensor:
    return torch.randn(batch, tokens, dim, generator=torch.Generator().manual_seed(seed)).to(**to)


def latents(seed: int, step: float = 0.0, shape: tuple[int, ...] = (1, 64, 8)) -> Tensor:
    """Where generation `seed` stands at `step` of 0..1: on the line from its noise to its image."""
    g = torch.Generator().manual_seed(seed)
    noise, image = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    return noise + step * (image - noise)


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def same(one: Any, two: Any) -> None:
    """Fails unless both are equal bit for bit."""
    torch.testing.assert_close(one, two, rtol=0, atol=0)


Forward = Callable[[Tensor, Tensor, int], Tensor]  # latents, timestep, step -> velocity


def euler(forward: Forward, x: Tensor, timesteps: Tensor, end: float = 0.0) -> Tensor:
    for i, t in enumerate(timesteps):
        after = timesteps[i + 1] if i + 1 < len(timesteps) else end
        x = x + (after - t) * forward(x, t, i)
    return x


def generate(
    model: Callable[..., Any], seed: int = 0, timesteps: Tensor | None = None, **shape: Any
) -> Tensor:
    """One uncalled-for-details generation: the latents that come out."""
    timesteps = grid() if timesteps is None else timesteps
    x, text = noise(seed, **shape), prompt(seed, batch=shape.get("batch", 1))
    text = text.to(x.dtype)

    def forward(x: Tensor, t: Tensor, _: int) -> Tensor:
        return first(model(x, t.expand(len(x)).to(x.dtype), text))

    return euler(forward, x, timesteps)


def forecast_by_hand(plan: Plan, forward: Forward) -> Forward:
    """The same plan in plain eager code: a list of outputs and a weighted sum."""
    schedule = plan.regions[0]
    history: list[Tensor] = []

    def step(x: Tensor, t: Tensor, i: int) -> Tensor:
        if i in schedule.computed:
            history.insert(0, forward(x, t, i))
            return history[0]
        row = schedule.weights[i]
        total = sum(w * y.float() for w, y in zip(row, history, strict=False) if w != 0.0)
        return torch.as_tensor(total).to(history[0].dtype)

    return step


def make_plan(
    model: nn.Module,
    timesteps: Tensor | Sequence[float] | None = None,
    *,
    computed: Sequence[int] = (0, 1, 4, 7, 10),
    row: Sequence[float] = (1.5, -0.5),
    signature: str | None = None,
) -> Plan:
    """A plan with one row for all skipped steps, for the model as compiled."""
    times = grid() if timesteps is None else torch.as_tensor(timesteps)
    zero = (0.0,) * len(row)
    rows = tuple(zero if i in computed else tuple(row) for i in range(len(times)))
    region = RegionSchedule("denoiser", tuple(computed), rows, len(row), "by hand", "by hand")
    signature = signature_of(model) if signature is None else signature
    return Plan(signature, tuple(float(t) for t in times), (region,), "edf").validate()


def signature_of(model: nn.Module) -> str:
    from ditcache.runtime.session import session_of

    session = session_of(model)
    assert session is not None
    assert session.signature is not None, "call the compiled model first"
    return session.signature


def compiled(model: nn.Module, **options: Any) -> Any:
    """Compiled by ditcache with the eager inner compiler unless told otherwise."""
    options = {"inner": "eager"} | options
    return torch.compile(model, backend="ditcache", options=options)


def planned(model: nn.Module, **plan: Any) -> tuple[Any, Plan]:
    """Compiled, warmed up by one call, and running under a plan."""
    made = compiled(model, policy="none")
    made(noise(), torch.ones(1), prompt())
    chosen = make_plan(model, **plan)
    ditcache.apply(made, chosen)
    return made, chosen
