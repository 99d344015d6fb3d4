"""Samplers that clip: the clamp is told from single elements, and plans are made by walking it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ditcache.passes.clamp import Clamp, clamp_of, guidance_of
from ditcache.passes.clipped_run import ClippedRun, answer_of
from ditcache.passes.plan_format import PlanError
from ditcache.passes.profile import Profile, ProfileError

STEPS, LIMIT = 24, 1.0


def noise_levels(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Alpha and sigma [steps + 1] of a cosine schedule, the last without noise."""
    t = np.append(np.linspace(0.97, 0.06, steps), 0.0) * np.pi / 2
    return np.cos(t), np.sin(t)


class World:
    """A denoiser of single elements, each with data of its own, and DDIM's step in float64."""

    def __init__(self, kind: str, elements: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.kind, self.random = kind, random
        self.alpha, self.sigma = noise_levels(STEPS)
        self.data = random.uniform(-1.4, 1.4, elements)
        self.first = random.normal(size=elements)

    def output(self, x: np.ndarray, t: int, branch: int = 0) -> np.ndarray:
        a, s = self.alpha[t], self.sigma[t]
        data = self.data + 0.4 * s * np.tanh(2 * x + branch) + 0.2 * branch * np.sin(9 * self.data)
        noise = (x - a * data) / s
        return {"noise": noise, "data": data, "velocity": a * noise - s * data}[self.kind]

    def step(self, x: np.ndarray, y: np.ndarray, t: int, limit: float = LIMIT) -> np.ndarray:
        a, s, after, left = self.alpha[t], self.sigma[t], self.alpha[t + 1], self.sigma[t + 1]
        data, noise = {
            "noise": ((x - s * y) / a, y),
            "data": (y, (x - a * y) / s),
            "velocity": (a * x - s * y, a * y + s * x),
        }[self.kind]
        return after * np.clip(data, -limit, limit) + left * noise

    def run(self, guidance: float | None = None, limit: float = LIMIT, drawn: float = 0.0):
        """Latents [T, N] and outputs [B, T, N] of an uncached run."""
        x, xs, ys = self.first, [], []
        for t in range(STEPS):
            y = [self.output(x, t, b) for b in range(1 if guidance is None else 2)]
            xs.append(x)
            ys.append(y)
            seen = y[0] if guidance is None else guidance * y[0] + (1 - guidance) * y[1]
            x = self.step(x, seen, t, limit) + drawn * self.random.normal(size=len(x))
        return np.asarray(xs), np.swapaxes(np.asarray(ys), 0, 1)


@pytest.mark.parametrize("kind", ["noise", "velocity"])
@pytest.mark.parametrize("elements", [128, 1024])
def test_the_steps_are_those_of_the_sampler(kind, elements):
    world = World(kind, elements)
    x, y = world.run()
    clamp = clamp_of(x, y[0])
    assert clamp is not None
    # No call sees the last step. That of predictions of the noise follows from those before it, for
    # a sampler that ends within its limit; others go on as they did.
    for t in range(STEPS if kind == "noise" else STEPS - 1):
        made, true = clamp.after(t, x[t], y[0, t]), world.step(x[t], y[0, t], t)
        np.testing.assert_allclose(made, true, atol=1e-5)
    a, s = world.alpha, world.sigma
    if kind == "noise":
        k, q, m, back, through = clamp.rows[:-1].T
        np.testing.assert_allclose(m, LIMIT * a[1:-1], rtol=1e-4)
        np.testing.assert_allclose(back, s[1:-1], rtol=1e-4)
        np.testing.assert_allclose(k, a[1:-1] / a[:-2], rtol=1e-2)
        np.testing.assert_allclose(q, s[:-2] * a[1:-1] / a[:-2], rtol=1e-2)
        assert not through.any()


def test_predictions_of_the_data_are_clipped_too():
    world = World("data", 512)
    x, y = world.run()
    clamp = clamp_of(x, y[0])
    assert clamp is not None
    moved = [np.abs(clamp.after(t, x[t], y[0, t]) - x[t + 1]).max() for t in range(STEPS - 1)]
    assert max(moved) < 1e-4


def test_guidance_is_told_and_the_rest_follows():
    x, y = World("noise", 256).run(guidance=3.0)
    scale = guidance_of(x, y)
    assert scale == pytest.approx(3.0, abs=1e-5)
    assert clamp_of(x, 3.0 * y[0] - 2.0 * y[1]) is not None
    assert clamp_of(x, y[0]) is None, "one branch alone does not explain the sampler"


def test_what_is_no_clamp_is_refused():
    world = World("noise", 512)
    x, y = world.run(limit=np.inf)
    assert clamp_of(x, y[0]) is None, "nothing was ever clipped: the sampler is linear"
    x, y = world.run(drawn=0.05)
    assert clamp_of(x, y[0]) is None, "drawn noise"
    x, y = World("noise", 512).run()
    x[1:, ::3] = World("noise", 512, seed=5).run()[0][1:, ::3]
    assert clamp_of(x, y[0]) is None, "some elements were put back from elsewhere"
    assert clamp_of(x[:, :16], y[0, :, :16]) is None, "too few elements"


def test_half_precision_is_no_obstacle():
    world = World("noise", 1024)
    x, y = world.run()
    rounded = x.astype(np.float16).astype(np.float64)
    assert clamp_of(rounded, y[0], 2.0**-11) is not None
    assert clamp_of(rounded, y[0]) is None, "as if they were exact"


class Posterior(World):
    """The exact denoiser of elements that are Gaussian (every second one) or either -1.3 or 1.3."""

    def output(self, x: np.ndarray, t: int, branch: int = 0) -> np.ndarray:
        a, s = self.alpha[t], self.sigma[t]
        power, every = np.linspace(0.05, 1.0, len(x)), np.arange(len(x))
        data = np.where(
            every // 2 % 2, a * power / (a**2 * power + s**2) * x, 1.3 * np.tanh(1.3 * a * x / s**2)
        )
        return (x - a * data) / s


def clipped_profile(synthetic, elements: int = 256):
    """A profile of such generations, with elements."""
    world = Posterior("noise", elements)
    x, y = world.run()
    clamp = clamp_of(x, y[0])
    assert clamp is not None
    answer = answer_of(x[None], y[:1].reshape(1, STEPS, -1), clamp)
    run = ClippedRun(clamp, x.astype(np.float32), y[0].astype(np.float32), answer)
    plain = synthetic.profile(STEPS)
    gram = (y[0] @ y[0].T / elements)[None, None]
    region = dataclasses.replace(plain.regions[0], gram=gram)
    times = tuple(np.linspace(0.97, 0.06, STEPS).tolist())
    return dataclasses.replace(
        plain, timesteps=times, regions=(region,), adds_up=False, clipped=run.thinned()
    )


def replayed(world: World, plan) -> float:
    """Relative rms error of the world's own samples under a plan."""
    region, ends = plan.regions[0], []
    for computed in (set(range(STEPS)), set(region.computed)):
        x, held = world.first, []
        for t in range(STEPS):
            if t in computed:
                held.insert(0, world.output(x, t))
                y = held[0]
            else:
                y = sum(w * h for w, h in zip(region.weights[t], held, strict=False))
            x = world.step(x, y, t)
        ends.append(x)
    return float(np.sqrt(np.mean((ends[1] - ends[0]) ** 2) / np.mean(ends[0] ** 2)))


@pytest.mark.parametrize("speedup", [3, 6])
def test_a_plan_is_solved_for_the_clamp_and_its_error_told(synthetic, speedup):
    profile = clipped_profile(synthetic)
    plan = profile.plan(speedup)
    assert plan.solver == "clamped"
    assert plan.computed_steps == STEPS // speedup
    measured = replayed(Posterior("noise", 256), plan)
    assert measured / 2 < plan.expected_error < 5 * measured
    before = dataclasses.replace(profile, clipped=None).plan(speedup)
    assert before.solver == "grid"
    assert before.expected_error is None
    assert measured < replayed(Posterior("noise", 256), before) / 3


def test_bounds_and_the_frontier_hold_for_a_sampler_that_clips(synthetic):
    profile = clipped_profile(synthetic)
    few, many = profile.plan(max_error=0.05), profile.plan(max_error=0.005)
    assert few.computed_steps < many.computed_steps <= STEPS
    assert few.expected_error <= 0.05
    rows = {row.computed_steps: row.expected_error for row in profile.frontier()}
    assert rows[STEPS] == 0.0
    assert rows[6] > rows[18]


def test_elsewhere_nothing_is_told_of_it(synthetic):
    """On another grid, at another guidance, and through another scheduler it is as without."""
    profile = clipped_profile(synthetic)
    other = profile.plan(2, timesteps=np.linspace(0.9, 0.1, 12).tolist())
    assert other.solver == "grid"
    assert other.expected_error is None
    weaker = dataclasses.replace(profile, guidance=3.0).plan(2, guidance=2.0)
    assert weaker.expected_error is None
    with pytest.raises(PlanError, match="max_error"):
        dataclasses.replace(profile, guidance=3.0).plan(max_error=0.1, guidance=2.0)


def test_elements_are_saved_and_merged(synthetic, tmp_path):
    profile = clipped_profile(synthetic)
    profile.save(tmp_path / "p")
    again = Profile.load(tmp_path / "p")
    assert again.plan(3) == profile.plan(3)
    assert (tmp_path / "p").stat().st_size < 1 << 20
    both = profile.merged(again)
    assert both.clipped.x.shape == (STEPS, 512)
    assert both.plan(3).solver == "clamped"
    alone = dataclasses.replace(profile, clipped=None)
    assert profile.merged(alone).clipped is None
    bad = dataclasses.replace(profile.clipped, answer=np.full(STEPS, np.nan))
    with pytest.raises(ProfileError, match="NaN"):
        dataclasses.replace(profile, clipped=bad)
    bad = dataclasses.replace(profile.clipped, clamp=Clamp(np.zeros((3, 5))))
    with pytest.raises(ProfileError, match="fit together"):
        dataclasses.replace(profile, clipped=bad)


def test_many_steps_keep_fewer_elements(synthetic):
    run = clipped_profile(synthetic).clipped
    long = ClippedRun(run.clamp, np.tile(run.x, (40, 3)), np.tile(run.y, (40, 3)), run.answer)
    assert long.thinned().x.size <= 65536
