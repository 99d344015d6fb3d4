"""tune(granularity="auto"): a part is forecast where that was measured to be better."""

from __future__ import annotations

import ditcache
import pytest
import torch
from torch import Tensor, nn

from ..runtime.helpers import compiled, counting, grid, noise, prompt
from .models import STEPS, Dit, denoise


class Flickering(Dit):
    """What the blocks give changes slowly; what is added to it at no cost changes at every step."""

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        wave = (12.0 * x + 61.0 * timestep[:, None, None]).sin()
        return super().forward(x, timestep, text) + 0.5 * wave


def calibrated(model, samples=3, generate=denoise):
    made = compiled(model, policy="none")

    def run(i):
        return generate(made, i)

    return made, run, ditcache.calibrate(made, run, samples)


def off(made, model, plan, seeds):
    """Relative rms error of the final samples under a plan, and the share of MLPs that ran."""
    ditcache.apply(made, plan)
    wrong = moved = 0.0
    with counting() as ran:
        ours = [denoise(made, seed) for seed in seeds]
    mlps = ran["mlp"]  # counting goes on
    for seed, sample in zip(seeds, ours, strict=True):
        wanted = denoise(model, seed)
        wrong += float((sample - wanted).square().sum())
        moved += float((wanted - noise(seed)).square().sum())
    return (wrong / moved) ** 0.5, mlps / (len(seeds) * STEPS * len(model.blocks))


def test_a_part_wins_where_the_rest_changes_at_every_step():
    model = Flickering()
    made, run, profile = calibrated(model)
    whole = ditcache.tune(made, run, profile, speedup=2.0)
    plan = ditcache.tune(made, run, profile, speedup=2.0, granularity="auto")
    assert plan.regions[0].region != "denoiser"
    assert "against" in plan.chosen
    assert plan.chosen.startswith("closed loop; ")
    error, ran = off(made, model, plan, range(3))
    assert error == pytest.approx(plan.expected_error, rel=0.02)
    assert error < 0.6 * whole.expected_error
    assert ran <= 0.5
    assert not ditcache.summary(made).fallbacks
    fresh = range(20, 24)
    assert off(made, model, plan, fresh)[0] < 0.6 * off(made, model, whole, fresh)[0]


def test_the_whole_denoiser_stays_where_no_part_is_better():
    """All of a generation's change comes from the steps: any part left out costs as much."""
    made, run, profile = calibrated(Dit())
    whole = ditcache.tune(made, run, profile, speedup=4.0, candidates=2)
    plan = ditcache.tune(made, run, profile, speedup=4.0, candidates=2, granularity="auto")
    assert plan.expected_error <= whole.expected_error * (1 + 1e-6)
    if plan.regions[0].region == "denoiser":
        assert plan.regions == whole.regions
    assert "plans for parts of the model at equal MACs" in plan.chosen


class Routed(Dit):
    """What each expert adds to the stream is no residual of its own block."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
        self.requires_grad_(False)

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        h = super().forward(x, timestep, text)
        chosen = h.argmax(-1, keepdim=True) % 6
        routed = sum(torch.where(chosen == i, e(h), 0.0) for i, e in enumerate(self.experts))
        return h + 0.1 * routed


@pytest.mark.parametrize("sampler", ["euler", "ancestral"])
def test_a_plan_that_does_not_fit_is_no_plan_without_error(sampler, caplog):
    """It would compute in full: nothing is measured then, and nothing said."""
    how = {"euler": denoise, "ancestral": churning}[sampler]
    made, run, profile = calibrated(Routed(), samples=1, generate=how)
    plan = ditcache.tune(
        made, run, profile, speedup=2.0, samples=1, candidates=1, granularity="auto"
    )
    assert plan.expected_error > 0.0
    ditcache.reset(made)
    ditcache.apply(made, plan)
    how(made, 9)
    summary = ditcache.summary(made)
    assert (summary.fallbacks, summary.forecast > 0) == ({}, True)
    assert "does not fit" not in caplog.text


def churning(model, seed):
    """An ancestral sampler: the same noise for the same seed."""
    times, x, text = grid(STEPS), noise(seed), prompt(seed)
    g = torch.Generator().manual_seed(seed)
    for i, t in enumerate(times):
        after = times[i + 1] if i + 1 < len(times) else torch.tensor(0.0)
        made = model(x, t.expand(1), text)
        x = x + (after - t) * made
        x = x + 0.1 * (t - after) ** 0.5 * torch.randn(x.shape, generator=g)
    return x


def test_a_stochastic_sampler_compares_what_generate_returns():
    made, run, profile = calibrated(Flickering(), samples=2, generate=churning)
    assert profile.reference is None
    plan = ditcache.tune(
        made, run, profile, speedup=2.0, samples=2, candidates=2, granularity="auto"
    )
    assert plan.regions[0].region != "denoiser"
    ditcache.apply(made, plan)
    wanted = torch.cat([churning(made._orig_mod, i) for i in range(2)])
    ours = torch.cat([churning(made, i) for i in range(2)])
    measured = float((ours - wanted).norm() / wanted.norm())
    assert plan.expected_error == pytest.approx(measured, rel=0.1)


def test_the_plan_travels_as_a_file(tmp_path):
    model = Flickering()
    made, run, profile = calibrated(model, samples=1)
    plan = ditcache.tune(made, run, profile, speedup=2.0, candidates=1, granularity="auto")
    plan.save(tmp_path / "plan.json")
    assert ditcache.Plan.load(tmp_path / "plan.json") == plan
    with pytest.raises(ValueError, match="granularity must be"):
        ditcache.tune(made, run, profile, speedup=2.0, granularity="block")
