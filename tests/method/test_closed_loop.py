"""The method on a model that was really trained: fidelity of the sample, loop closed.

A small rectified flow on scikit-learn's digits, class-conditional with guidance, trained here in
some seconds. Plans come from a few calibration generations, and are judged on other noise by the
PSNR of their samples to the uncached sampler's, each policy at the same number of model calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from ditcache.passes.plan_format import Plan
from ditcache.passes.profile import Profile, RegionProfile
from torch import Tensor, nn

datasets = pytest.importorskip("sklearn.datasets")
NULL = 10
SPEEDUPS = (3.0, 5.0, 7.0)
PUBLISHED = ("reuse", "taylor-1", "taylor-2", "lagrange-1", "lagrange-2")


class Flow(nn.Module):
    def __init__(self, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.embed, self.label = nn.Linear(64, width), nn.Embedding(NULL + 1, width)
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.shift = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.block = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(),
                nn.Linear(2 * width, width),
            )
            for _ in range(depth)
        )  # fmt: skip
        self.out = nn.Linear(width, 64)
        self.register_buffer("speed", torch.exp(torch.linspace(-1.0, 3.5, 16)))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        angle = sigma[:, None] * self.speed
        state = self.time(torch.cat([angle.sin(), angle.cos()], 1)) + self.label(label)
        hidden = self.embed(x)
        for shift, block in zip(self.shift, self.block, strict=True):
            scale, move = shift(nn.functional.silu(state)).chunk(2, 1)
            hidden = hidden + block(hidden * (1 + scale) + move)
        return self.out(hidden)


@dataclass
class Sampler:
    """Euler's method over 50 steps of a shift-3 grid at guidance 2."""

    model: Flow
    guidance: float = 2.0

    @property
    def sigma(self) -> np.ndarray:
        even = np.linspace(1.0, 0.0, 51)
        return 3 * even / (1 + 2 * even)

    @torch.no_grad()
    def run(self, count: int, seed: int, plan: Plan | None = None) -> tuple[Tensor, list[Tensor]]:
        """Samples [count, 64] and the branches' outputs [2, count, 64] of the computed steps."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, 64, generator=generator)
        label = torch.randint(0, NULL, (count,), generator=generator)
        recorded: list[Tensor] = []
        region = None if plan is None else plan.regions[0]
        for step, (now, then) in enumerate(zip(self.sigma, self.sigma[1:], strict=False)):
            if region is None or step in region.computed:
                time = torch.full((count,), float(now))
                null = torch.full_like(label, NULL)
                y = torch.stack([self.model(x, time, label), self.model(x, time, null)])
                recorded.append(y)
            else:
                weights = region.weights[step]
                y = sum(w * h for w, h in zip(weights, reversed(recorded), strict=False))
            w = self.guidance
            x = x + float(then - now) * (w * y[0] + (1 - w) * y[1])
        return x, recorded

    def profile(self, samples: int, seed: int) -> Profile:
        y = torch.stack(self.run(samples, seed)[1]).double().numpy()
        gram = np.einsum("sanm,tbnm->abst", y, y) / (samples * 64)
        return Profile(
            signature="digits",
            timesteps=tuple(self.sigma[:-1].tolist()),
            branches=("cond", "uncond"),
            samples=samples,
            regions=(RegionProfile("denoiser", gram, (1, 64), "float32"),),
            guidance=self.guidance,
        )

    def psnr(self, plan: Plan, count: int = 48, seed: int = 999) -> float:
        wanted, got = self.run(count, seed)[0], self.run(count, seed, plan)[0]
        return float((10 * torch.log10(4 / ((wanted - got) ** 2).mean(1))).mean())


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    digits = datasets.load_digits()
    images = torch.tensor(digits.data / 8 - 1, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    model = Flow()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        chosen = torch.randint(len(images), (128,))
        label = torch.where(torch.rand(128) < 0.1, NULL, labels[chosen])
        sigma, noise = torch.sigmoid(torch.randn(128)), torch.randn(128, 64)
        mixed = (1 - sigma)[:, None] * images[chosen] + sigma[:, None] * noise
        loss = ((model(mixed, sigma, label) - (noise - images[chosen])) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.set_num_threads(threads)
    return Sampler(model.eval().requires_grad_(False))


@pytest.mark.parametrize("samples", [2, 8])
def test_fidelity_at_equal_compute(sampler, samples):
    """Ahead of every published policy by far, and of the best plain one on its best schedule."""
    profile = sampler.profile(samples, seed=1)
    table = {
        policy: [sampler.psnr(profile.plan(s, policy=policy)) for s in SPEEDUPS]
        for policy in ("edf", *PUBLISHED, *(f"{name}-best" for name in PUBLISHED))
    }
    for policy, row in table.items():
        print(f"{policy:16s}" + "".join(f"{value:7.2f}" for value in row))
    ours = np.array(table["edf"])
    published = np.array([table[name] for name in PUBLISHED])
    best = np.array([table[f"{name}-best"] for name in PUBLISHED])
    assert (ours > published.max(0) + 3.0).all()
    assert ours.mean() > best.mean(1).max() + (0.3 if samples == 2 else 2.0)


def test_the_predicted_error_ranks_budgets(sampler):
    """More computed steps: a smaller predicted error and a better sample."""
    profile = sampler.profile(4, seed=2)
    plans = [profile.plan(s) for s in (2.0, 3.0, 5.0, 10.0)]
    assert np.all(np.diff([plan.expected_error for plan in plans]) > 0)
    assert np.all(np.diff([sampler.psnr(plan) for plan in plans]) < 0)
