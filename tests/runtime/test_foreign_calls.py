"""Ways to call a model, and to compile around it, that once were cached wrongly or not at all."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import ditcache
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from .helpers import Denoiser, compiled, counting, euler, first, generate, grid, noise, prompt


def relative(one: Tensor, two: Tensor) -> float:
    return float((one - two).norm() / two.norm())


class Stepping(nn.Module):
    """A step of Euler's around the model: what it gives are the next latents."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Denoiser()

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return x - first(self.model(x, timestep, text)) / 12


def steps(step, seed, *, between=lambda x: x):
    x = noise(seed)
    for i in range(12):
        x = between(step(x, torch.tensor([1 - i / 12]), prompt(seed)))
    return x


@pytest.mark.parametrize("between", [lambda x: x, torch.clone], ids=["given on", "copied"])
def test_a_compiled_sampler_step_is_never_forecast(between, caplog):
    model = Stepping()
    made = compiled(model)
    for seed in range(4):
        with counting() as ran:
            ours = steps(made, seed, between=between)
        assert ran["body"] == 12
        assert relative(ours, steps(model, seed, between=between)) < 1e-9
    assert caplog.text.count("takes the sampler's step itself") == 1
    assert ditcache.summary(made).forecast == 0


def test_a_compiled_sampler_step_under_a_policy_without_a_profile(caplog):
    model = Stepping()
    made = compiled(model, policy="fora", interval=3)
    for seed in range(4):
        assert relative(steps(made, seed), steps(model, seed)) < 1e-9
    assert caplog.text.count("takes the sampler's step itself") == 1


def test_calibration_refuses_a_compiled_sampler_step():
    made = compiled(Stepping())
    with pytest.raises(ditcache.ProfileError, match="Compile the model alone"):
        ditcache.calibrate(made, lambda i: steps(made, i, between=torch.clone), samples=2)


class Wrapper(nn.Module):
    """Hands everything on, as DistributedDataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs, **kwargs):
        return self.module(*inputs, **kwargs)


def test_arguments_of_a_wrapper_are_no_list_of_latents(caplog):
    model = Denoiser()
    made = compiled(Wrapper(model))
    for seed, expected in ((0, 12), (1, 12), (2, 6)):
        with counting() as ran:
            ours = generate(made, seed)
        assert ran["body"] == expected
        assert relative(ours, generate(model, seed)) < 0.02
    assert "not predicted" not in caplog.text
    assert "expected error" in ditcache.summary(made).plan


class Numeric(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = Denoiser()

    def forward(self, x, t, text):
        time = torch.as_tensor(t, dtype=torch.float32).reshape(-1)
        return first(self.base(x, time.expand(len(x)), text))


@pytest.mark.parametrize("kind", [np.float32, np.float64, lambda t: np.array(float(t))])
def test_numpy_timesteps_are_planned(kind):
    model, text = Numeric(), prompt()
    made = compiled(model)
    for seed, expected in ((0, 12), (1, 12), (2, 6)):
        with counting() as ran:
            ours = euler(lambda x, t, _: made(x, kind(t), text), noise(seed), grid())
        assert ran["body"] == expected
        theirs = euler(lambda x, t, _: model(x, kind(t), text), noise(seed), grid())
        assert relative(ours, theirs) < 0.02


def test_a_number_that_becomes_a_constant_of_the_graph_is_named(caplog):
    model, text = Numeric(), prompt()
    made = compiled(model)
    for seed in range(2):
        ours = euler(lambda x, t, _: made(x, float(t), text), noise(seed), grid(6))
        theirs = euler(lambda x, t, _: model(x, float(t), text), noise(seed), grid(6))
        assert relative(ours, theirs) < 1e-9
    assert "pass it as a tensor" in caplog.text
    assert "no plan could be made" not in caplog.text


class Extra(nn.Module):
    """What a model may give besides: features that do not go with the sampler."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Denoiser()

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> dict[str, Tensor]:
        out = first(self.base(x, timestep, text))
        return {"features": 100 * torch.sin(30 * out).flatten(1), "out": out, "norm": out.norm()}


def test_outputs_besides_the_prediction_take_no_part_in_the_plan(caplog):
    model, text = Extra(), prompt()
    made, plain = compiled(model), compiled(Denoiser())
    for seed in range(3):
        with counting() as ran:
            ours = euler(lambda x, t, _: made(x, t[None], text)["out"], noise(seed), grid())
        assert ran["body"] == (6 if seed == 2 else 12)
        alone = euler(lambda x, t, _: first(plain(x, t[None], text)), noise(seed), grid())
        torch.testing.assert_close(ours, alone, rtol=1e-3, atol=1e-3)
    assert "not predicted" not in caplog.text


@pytest.mark.parametrize(
    "timesteps", [12, ["a", "b"], torch.ones(()), grid()[None]], ids=["int", "text", "0-d", "2-d"]
)
def test_what_is_no_row_of_timesteps(timesteps):
    with (
        pytest.raises(ValueError, match="the timesteps of the whole loop"),
        ditcache.generation(timesteps=timesteps),
    ):
        pass


def test_a_generation_around_every_call_is_named(caplog):
    model = Denoiser()
    made = compiled(model)

    def alone(x: Tensor, t: Tensor, _: int) -> Tensor:
        with ditcache.generation():
            return first(made(x, t[None], prompt()))

    ours = euler(alone, noise(), grid())
    assert relative(ours, generate(model)) < 1e-9
    assert caplog.text.count("open it once, around the whole sampling loop") == 1
    assert "no plan could be made" not in caplog.text


def test_a_sampler_with_two_calls_a_step_is_told_so_when_calibrating(caplog):
    made = compiled(Denoiser())

    def heun(_: int) -> None:
        x = noise()
        for t, after in pairwise(grid()):
            slope = first(made(x, t[None], prompt()))
            there = first(made(x + (after - t) * slope, after[None], prompt()))
            x = x + (after - t) * (slope + there) / 2

    with pytest.raises(ditcache.ProfileError, match="such as Heun"):
        ditcache.calibrate(made, heun, samples=2)
    assert "open it once" not in caplog.text, "nobody opened a generation"


def test_generations_that_were_cut_short_do_not_spoil_whole_ones(tmp_path):
    model = Denoiser()
    made = compiled(model, remember=True, cache_dir=str(tmp_path))

    def stopped(x: Tensor, t: Tensor, step: int) -> Tensor:
        if step == 5:
            raise KeyboardInterrupt
        return first(made(x, t[None], prompt()))

    for seed in (0, 1, 2):
        with contextlib.suppress(KeyboardInterrupt):
            euler(stopped, noise(seed), grid())
    ran_at = []
    for seed in range(3, 8):
        with counting() as ran:
            ours = generate(made, seed)
        ran_at.append(ran["body"])
        assert relative(ours, generate(model, seed)) < 0.02
    assert ran_at[-1] == 6
    assert len(list(tmp_path.rglob("*.plan.json"))) == 1


class Transposing(nn.Module):
    """Gives its output in another layout than the first latents have."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Denoiser()
        self.scale = 1.0

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        out = first(self.base(x.transpose(1, 2), timestep, text))
        return out.transpose(1, 2) * self.scale


def test_latents_that_come_in_another_layout_from_the_second_step_on():
    model, text = Transposing(), prompt()

    def run(forward, seed):
        x = torch.randn(1, 16, 6, generator=torch.Generator().manual_seed(seed))
        return euler(lambda x, t, _: forward(x, t[None], text), x, grid())

    made = compiled(model)
    profile = ditcache.calibrate(made, lambda i: run(made, i), samples=2)
    assert len(profile.timesteps) == 12
    for seed, expected in ((0, 12), (1, 12), (2, 6)):
        with counting() as ran:
            ours = run(made, seed)
        assert ran["body"] == expected
        assert relative(ours, run(model, seed)) < 0.02
    model.scale = 2.0
    assert relative(run(made, 3), run(model, 3)) < 0.02, "another graph is another function"
