"""Small models, one for each thing that a pass has to get right."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

D = 8


class Block(nn.Module):
    """Attention over the text, modulation by the timestep, MLP: two residual branches."""

    def __init__(self, dim: int = D):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.attn = nn.ModuleDict({k: nn.Linear(dim, dim) for k in ("q", "k", "v", "o")})
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, emb: Tensor, text: Tensor) -> Tensor:
        scale, shift = self.modulation(emb)[:, None].chunk(2, -1)
        q = self.attn["q"](self.norm(x) * (1 + scale) + shift)
        k, v = self.attn["k"](text), self.attn["v"](text)
        x = x + self.attn["o"](F.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(self.norm(x))


class Residual(nn.Module):
    """A chain of `depth` blocks: what a diffusion transformer looks like from afar."""

    def __init__(self, depth: int = 2):
        super().__init__()
        self.time = nn.Linear(1, D)
        self.proj = nn.Linear(4, D)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.out = nn.Linear(D, 4)

    def forward(self, hidden_states: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        emb = self.time(timestep[:, None])
        h = self.proj(hidden_states)
        for block in self.blocks:
            h = block(h, emb, text)
        return self.out(h)


class JointBlock(nn.Module):
    """Image and text stream carried side by side, mixed by one attention."""

    def __init__(self):
        super().__init__()
        self.attn = nn.Linear(D, D)
        self.ff = nn.Linear(D, D)
        self.ff_context = nn.Linear(D, D)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        both = self.attn(torch.cat([context, x], 1))
        mixed = F.scaled_dot_product_attention(both, both, both)
        n = context.shape[1]
        x, context = x + mixed[:, n:], context + mixed[:, :n]
        return x + self.ff(x), context + self.ff_context(context)


class Joint(nn.Module):
    """Blocks that carry (hidden, encoder), as Flux and SD3 do."""

    def __init__(self, depth: int = 2):
        super().__init__()
        self.transformer_blocks = nn.ModuleList(JointBlock() for _ in range(depth))

    def forward(self, hidden_states: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        x, context = hidden_states * timestep[:, None, None], text
        for block in self.transformer_blocks:
            x, context = block(x, context)
        return x


class Guided(Residual):
    """Both guidance branches in one batched call, combined at the end."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        twice = torch.cat([hidden_states, hidden_states])
        cond, uncond = super().forward(twice, torch.cat([timestep] * 2), text).chunk(2)
        return uncond + 3.0 * (cond - uncond)


class UNet(nn.Module):
    """Down, deep, up with skips: the deep part has most work and one small border."""

    def __init__(self):
        super().__init__()
        self.time = nn.Linear(1, 16)
        self.down = nn.ModuleList([nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)])
        self.mid = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(6))
        self.up = nn.ModuleList([nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)])

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        skip = self.down[0](sample)
        h = self.down[1](skip) + self.time(timestep[:, None])[:, :, None, None]
        for conv in self.mid:
            h = h + conv(F.silu(h))
        h = F.interpolate(self.up[0](h), scale_factor=2.0)
        return self.up[1](torch.cat([h, skip], 1))


class Rotary(nn.Module):
    """In-place setitem into an empty tensor, as Wan's rotary embedding has it."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(D, D)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.blocks[0](x) * t[:, None, None]
        out = torch.empty_like(h)
        out[..., 0::2] = h[..., 0::2] * 2
        out[..., 1::2] = h[..., 1::2] * 3
        return out


class Writes(nn.Module):
    """In-place ops of many kinds, one after the other on one tensor."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = x.to(torch.bfloat16) * 2
        first = h.add_(t[:, None, None])  # bf16 += f32: the sum is rounded to bf16
        h.mul_(3)
        h += first
        F.silu(h, inplace=True)
        h[:, 0] = 1
        first.clamp_(max=50)
        return h * 2 + first


class Autocast(nn.Module):
    """A range in another precision, one inside a block and one around the time embedding."""

    def __init__(self):
        super().__init__()
        self.time = nn.Linear(1, D)
        self.blocks = nn.ModuleList(nn.Linear(D, D) for _ in range(2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            emb = self.time(t[:, None])
        h = x * emb[:, None].float()
        for block in self.blocks:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                h = h + block(h).float()
        return h


class Noisy(nn.Module):
    """Draws noise between its blocks, and once for nothing."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(D, D) for _ in range(2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        torch.randn(3)  # moves the generator on, though nobody reads it
        h = self.blocks[0](x) + torch.randn_like(x)
        return self.blocks[1](h) * t[:, None, None]


class TupleOutput(nn.Module):
    """Returns a structure, with a value that no latent reaches and one returned twice."""

    def __init__(self):
        super().__init__()
        self.time = nn.Linear(1, D)
        self.blocks = nn.ModuleList(nn.Linear(D, D) for _ in range(2))

    def forward(self, x: Tensor, t: Tensor) -> dict[str, Tensor | list[Tensor]]:
        emb = self.time(t[:, None])
        h = self.blocks[1](self.blocks[0](x) + emb[:, None])
        return {"sample": h, "states": [h.mean(1), emb, h]}


class Tangled(nn.Module):
    """A residual branch that reads the stream that its own half made: no convex region."""

    def __init__(self):
        super().__init__()
        self.chain = nn.ModuleList([TangledBlock()])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.chain[0](x * t[:, None, None])


class TangledBlock(nn.Module):
    """`shared` feeds both the first branch and, around the residual add, the second."""

    def __init__(self):
        super().__init__()
        self.attn = nn.Linear(D, D)
        self.mlp = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.attn(x)
        x = x + torch.tanh(shared)
        return x + self.mlp(x) * shared


class StepBlock(nn.Module):
    """The block of the model in the documentation: small enough to print whole."""

    def __init__(self):
        super().__init__()
        self.attn = nn.Linear(D, D)
        self.mlp = nn.Linear(D, D)
        self.to_kv = nn.Linear(D, D)

    def forward(self, x: Tensor, emb: Tensor, text: Tensor) -> Tensor:
        kv = self.to_kv(text)
        x = x + self.attn(F.scaled_dot_product_attention(x, kv, kv))
        return x + self.mlp(x * emb)


class Step(nn.Module):
    """The model in the documentation."""

    def __init__(self, depth: int = 1):
        super().__init__()
        self.time = nn.Linear(1, D)
        self.blocks = nn.ModuleList(StepBlock() for _ in range(depth))
        self.out = nn.Linear(D, D)

    def forward(self, hidden_states: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        emb = self.time(timestep[:, None])[:, None]
        h = hidden_states
        for block in self.blocks:
            h = block(h, emb, text)
        return self.out(h)


class Written(nn.Module):
    """The model on normalize's page: writes by index and by method, in another type."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(D, D)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.blocks[0](x)
        out = torch.empty_like(h, dtype=torch.bfloat16)
        out[..., 0::2] = h[..., 0::2]
        out[..., 1::2] = h[..., 1::2]
        return out.add_(t[:, None, None])


class Twice(nn.Module):
    """The model on cleanup's page: computes one thing twice and another for nothing."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(D, D)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        a, b = self.q(x), self.q(x)
        torch.relu(a)
        return a + b


def inputs(batch: int = 2, tokens: int = 16) -> dict[str, Tensor]:
    """Arguments of `Residual`: [B,N,4], [B], [B,7,8]."""
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, tokens, 4, generator=generator),
        "timestep": torch.full((batch,), 500.0),
        "text": torch.randn(batch, 7, D, generator=generator),
    }


def wide(batch: int = 2) -> tuple[Tensor, Tensor]:
    """Arguments (x [B,16,8], t [B]) of the models that take two."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, 16, D, generator=generator), torch.full((batch,), 5.0)
