"""Denoisers as people write them, none from diffusers: names, shapes and habits of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import register_dataclass

DIM = 16


def angles(time: Tensor, dtype: torch.dtype) -> Tensor:
    """Sinusoidal features [*, DIM] of times of any shape."""
    freqs = torch.exp(-math.log(100.0) * torch.arange(DIM // 2) / (DIM // 2))
    both = time.float()[..., None] * freqs
    return torch.cat([both.cos(), both.sin()], -1).to(dtype)


class Layer(nn.Module):
    """Pre-norm attention and MLP, modulated by one vector a sample or a token."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.ada = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None = None) -> Tensor:
        shift, scale = self.ada(functional.silu(c)).chunk(2, -1)
        q, k, v = self.qkv(self.norm(x) * (1 + scale) + shift).chunk(3, -1)
        x = x + self.proj(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return x + self.mlp(self.norm(x) * (1 + scale) + shift)


class OriginalDiT(nn.Module):
    """As in the DiT paper's repository: forward(x, t, y), learned sigma, guidance inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Conv2d(4, DIM, 2, stride=2)
        self.labels = nn.Embedding(11, DIM)
        self.time = nn.Linear(DIM, DIM)
        self.blocks = nn.ModuleList(Layer() for _ in range(3))
        self.final = nn.Linear(DIM, 2 * 2 * 8)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        b, _, h, w = x.shape
        tokens = self.inward(x).flatten(2).transpose(1, 2)
        c = (self.time(angles(t, x.dtype)) + self.labels(y))[:, None]
        for block in self.blocks:
            tokens = block(tokens, c)
        out = self.final(tokens).reshape(b, h // 2, w // 2, 2, 2, 8)
        return torch.einsum("bhwpqc->bchpwq", out).reshape(b, 8, h, w)

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float) -> Tensor:
        half = x[: len(x) // 2]
        out = self.forward(torch.cat([half, half]), t, y)
        eps, rest = out[:, :3], out[:, 3:]
        cond, uncond = eps.chunk(2)
        guided = uncond + cfg_scale * (cond - uncond)
        return torch.cat([torch.cat([guided, guided]), rest], 1)


class Guided(nn.Module):
    """Guidance in the model's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.model = OriginalDiT()

    def forward(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float = 2.0) -> Tensor:
        return self.model.forward_with_cfg(x, t, y, cfg_scale)


class UViT(nn.Module):
    """U-ViT: time and text are tokens, long skips join the halves; gives a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.words = nn.Linear(12, DIM), nn.Linear(8, DIM)
        self.position = nn.Parameter(torch.randn(1, 16 + 5 + 1, DIM) * 0.1)
        self.down = nn.ModuleList(Layer() for _ in range(2))
        self.middle = Layer()
        self.up = nn.ModuleList(Layer() for _ in range(2))
        self.joins = nn.ModuleList(nn.Linear(2 * DIM, DIM) for _ in range(2))
        self.head = nn.Linear(DIM, 12)

    def forward(
        self, context: Tensor, img: Tensor, timesteps: Tensor, keep: Tensor
    ) -> dict[str, Tensor]:
        b, _, h, w = img.shape
        patched = functional.pixel_unshuffle(img, 2).flatten(2).transpose(1, 2)
        time = angles(timesteps, img.dtype)[:, None]
        x = torch.cat([time, self.words(context), self.patches(patched)], 1) + self.position
        mask = functional.pad(keep, (1, 16), value=True)[:, None].expand(-1, x.shape[1], -1)
        skips = []
        for block in self.down:
            x = block(x, time, mask)
            skips.append(x)
        x = self.middle(x, time, mask)
        for block, join in zip(self.up, self.joins, strict=True):
            x = block(join(torch.cat([x, skips.pop()], -1)), time, mask)
        out = self.head(x[:, 6:]).transpose(1, 2).reshape(b, 12, h // 2, w // 2)
        return {"sample": functional.pixel_shuffle(out, 2), "tokens": x}


class KeywordUNet(nn.Module):
    """A convolutional UNet called by keywords: noisy_images, noise_level, class_id."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, DIM, 3, padding=1)
        self.down = nn.Conv2d(DIM, DIM, 3, stride=2, padding=1)
        self.deep = nn.Sequential(*(nn.Conv2d(DIM, DIM, 3, padding=1) for _ in range(3)))
        self.up = nn.ConvTranspose2d(DIM, DIM, 2, stride=2)
        self.leave = nn.Conv2d(2 * DIM, 3, 3, padding=1)
        self.time, self.classes = nn.Linear(DIM, DIM), nn.Embedding(10, DIM)

    def forward(self, *, class_id: Tensor, noise_level: Tensor, noisy_images: Tensor) -> Tensor:
        c = self.time(angles(noise_level, noisy_images.dtype)) + self.classes(class_id)
        c = c[..., None, None]
        high = functional.silu(self.enter(noisy_images) + c)
        low = functional.silu(self.deep(self.down(high)) + c)
        return self.leave(torch.cat([high, self.up(low)], 1))


class Preconditioned(nn.Module):
    """EDM's wrapper: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), sigma as [B, 1, 1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.model = KeywordUNet()

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor) -> Tensor:
        sigma = sigma.float().reshape(-1, 1, 1, 1)
        total = sigma**2 + 0.25
        inner = self.model(
            noisy_images=x / total.sqrt(),
            noise_level=(sigma.log() / 4).flatten(),
            class_id=class_labels,
        )
        return 0.25 / total * x + sigma * 0.5 / total.sqrt() * inner


@dataclass
class Output:
    velocity: Tensor
    features: list[Tensor]


register_dataclass(Output)


class Tokens(nn.Module):
    """Channels last, complex rotary buffer, a time for each token, a dataclass with a list."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(6, DIM), nn.Linear(DIM, 6)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        grid = torch.arange(12.0)[:, None] * torch.arange(1.0, DIM // 2 + 1)
        self.register_buffer("rope", torch.polar(torch.ones_like(grid), grid), persistent=False)

    def forward(self, text: Tensor, ts: Tensor, frames: Tensor) -> Output:
        b, h, w, _ = frames.shape
        x = self.inward(frames).reshape(b, h * w, DIM)
        turned = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * self.rope[: h * w]
        x = torch.view_as_real(turned).flatten(2).to(frames.dtype)
        c = angles(ts, x.dtype) + text.mean(1, keepdim=True)
        kept = []
        for layer in self.layers:
            x = layer(x, c)
            kept.append(x)
        return Output(self.outward(x).reshape(b, h, w, 6), kept[-1:])


class SelfConditioned(nn.Module):
    """Sees its own last prediction beside the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.model = KeywordUNet()
        self.join = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor, time: Tensor, x_self_cond: Tensor) -> Tensor:
        joined = self.join(torch.cat([x, x_self_cond], 1))
        return self.model(noisy_images=joined, noise_level=time, class_id=time.long() * 0)


class TwoTimes(nn.Module):
    """A flow map between two times, as in consistency and mean-flow models."""

    def __init__(self) -> None:
        super().__init__()
        self.model = KeywordUNet()

    def forward(self, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return self.model(noisy_images=z, noise_level=t - 0.5 * r, class_id=t.long() * 0)


class Counted(nn.Module):
    """Steps counted in Python, a condition that may be missing, outputs nested with numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = KeywordUNet()

    def forward(
        self, noisy: Tensor, step: int, context: Tensor | None = None
    ) -> dict[str, dict[str, Any]]:
        time = torch.full((len(noisy),), step / 1000, dtype=noisy.dtype)
        out = self.model(noisy_images=noisy, noise_level=time, class_id=time.long() * 0)
        if context is not None:
            out = out + context.mean()
        return {"prediction": {"eps": out, "aux": [None, 3, out.mean()]}}


class Recurrent(nn.Module):
    """Keeps what it gave as an attribute and adds it the next time."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.last = KeywordUNet(), torch.zeros(1, 3, 8, 8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.model(noisy_images=x, noise_level=t, class_id=t.long() * 0)
        self.last = out + 0.1 * self.last
        return self.last


class Unnamed(nn.Module):
    """Names that say nothing, and two vectors either of which might be the time."""

    def __init__(self) -> None:
        super().__init__()
        self.model = KeywordUNet()

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return self.model(noisy_images=a, noise_level=b + 0.1 * c, class_id=b.long() * 0)


def build(cls: type[nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model with the same random weights every time, its parameters in `dtype`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls().requires_grad_(False).eval()
    for parameter in model.parameters():  # Module.to would make complex buffers real
        parameter.data = parameter.data.to(dtype)
    return model
