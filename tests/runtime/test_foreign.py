"""Models, inputs and calling habits that are not those of diffusers."""

from __future__ import annotations

from dataclasses import dataclass

import ditcache
import pytest
import torch
from torch import Tensor, nn

from .helpers import (
    Denoiser,
    compiled,
    count,
    counting,
    euler,
    first,
    generate,
    grid,
    noise,
    prompt,
    same,
)


def sample(forward, steps=12, seed=0):
    return euler(lambda x, t, _: forward(x, t), noise(seed), grid(steps))


def learns_and_plans(model, call, expected=6, **options):
    """Two generations in full, the third planned and close; gives the summary."""
    made = compiled(model, **options)
    for seed in range(3):
        with counting() as ran:
            ours = sample(lambda x, t: call(made, x, t), seed=seed)
        assert ran["body"] == (12 if seed < 2 else expected)
        theirs = sample(lambda x, t: call(model, x, t), seed=seed)
        error = (ours - theirs).norm() / theirs.norm()
        assert error < (0.05 if seed == 2 else 1e-9)
    return ditcache.summary(made)


class ClassModel(nn.Module):
    """forward(x, t, y) with int64 labels, as in the DiT paper's code."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Denoiser()
        self.labels = nn.Embedding(10, 16)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return first(self.base(x, t, self.labels(y)[:, None]))


def test_positional_short_names_and_class_labels():
    label = torch.tensor([3])
    summary = learns_and_plans(ClassModel(), lambda m, x, t: m(x, t.expand(1), label))
    assert summary.fallbacks == {}


def test_integer_timesteps_are_learned():
    model = ClassModel()
    label = torch.tensor([3])
    learns_and_plans(model, lambda m, x, t: m(x, (1000 * t).long().expand(1), label))


def test_keywords_may_come_in_another_order():
    model = ClassModel()
    y = torch.tensor([1])
    learns_and_plans(model, lambda m, x, t: m(y=y, t=t[None], x=x))


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = Denoiser()

    def forward(self, picture: Tensor, moment: Tensor, words: Tensor) -> dict[str, Tensor]:
        return {"velocity": first(self.base(picture, moment, words))}


def test_names_that_tell_nothing_and_a_dict_for_an_output():
    words = prompt()
    learns_and_plans(Odd(), lambda m, x, t: m(x, t[None], words)["velocity"])


def test_the_user_may_give_the_roles():
    words = prompt()
    summary = learns_and_plans(
        Odd(),
        lambda m, x, t: m(x, t[None], words)["velocity"],
        inputs={"picture": "latents", "moment": "timestep", "words": "condition"},
    )
    assert summary.uncached == ()


def test_a_role_for_an_input_that_there_is_not(caplog):
    made = compiled(Odd(), inputs={"nothing": "latents"})
    same(made(noise(), torch.ones(1), prompt()), made._orig_mod(noise(), torch.ones(1), prompt()))
    assert "'nothing'" in caplog.text
    assert "picture" in ditcache.summary(made).uncached[0]


@dataclass
class Result:
    sample: Tensor
    variance: Tensor


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = Denoiser()

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Result:
        out = first(self.base(x, timestep, text))
        return Result(sample=out, variance=(out * 0.1).exp())


def test_several_outputs_in_a_dataclass_are_forecast_together():
    model = Two()
    text = prompt()
    learns_and_plans(model, lambda m, x, t: m(x, t[None], text).sample)
    made = compiled(model, computed_steps=6)
    for seed in range(2):
        sample(lambda x, t: made(x, t[None], text).sample, seed=seed)
    kept = []

    def both(x, t):
        kept.append(made(x, t[None], text))
        return kept[-1].sample

    sample(both, seed=2)
    for result in kept:
        assert result.variance.shape == result.sample.shape
        torch.testing.assert_close(
            result.variance, (result.sample * 0.1).exp(), rtol=0.05, atol=0.05
        )
    other = torch.randn(1, 9, 16)
    with counting() as ran:
        for t in grid():
            made(other, t[None], text)
    assert ran["body"] == 12, "a plan for one vector of all outputs is not one for another length"


@pytest.mark.parametrize("kind", ["0-d", "python float", "batch of one", "bf16"])
def test_the_timestep_may_have_any_shape_and_type(kind):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = Denoiser()

        def forward(self, x, timestep, text):
            t = (timestep * torch.ones(1)).float()
            return self.base(x, t, text)

    shapes = {
        "0-d": lambda t: t,
        "python float": float,
        "batch of one": lambda t: t[None],
        "bf16": lambda t: t[None].bfloat16(),
    }
    model, text = Model(), prompt()
    made = compiled(model)
    for seed in range(4):
        ours = sample(lambda x, t: first(made(x, shapes[kind](t), text)), seed=seed)
        theirs = sample(lambda x, t: first(model(x, shapes[kind](t), text)), seed=seed)
        assert (ours - theirs).norm() / theirs.norm() < 0.05
    assert ditcache.summary(made).forecast > 0


class Timeless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = Denoiser()

    def forward(self, latents: Tensor, words: Tensor) -> Tensor:
        return first(self.base(latents, torch.ones(len(latents)), words))


def test_without_a_timestep_input_nothing_is_cached_outside_a_generation(caplog):
    model, words = Timeless(), prompt()
    made = compiled(model)
    for seed in range(3):
        same(
            sample(lambda x, t: made(x, words), seed=seed),
            sample(lambda x, t: model(x, words), seed=seed),
        )
    summary = ditcache.summary(made)
    assert summary.fallbacks == {"no timestep": 36}
    assert caplog.text.count("no timestep") == 1


def test_without_a_timestep_input_a_generation_tells_the_grid():
    model, words = Timeless(), prompt()
    made = compiled(model)
    for seed, expected in ((0, 12), (1, 12), (2, 6)):
        with ditcache.generation(timesteps=grid()), counting() as ran:
            ours = sample(lambda x, t: made(x, words), seed=seed)
        assert ran["body"] == expected
        theirs = sample(lambda x, t: model(x, words), seed=seed)
        assert (ours - theirs).norm() / theirs.norm() < 0.05


def test_more_calls_than_announced_timesteps_are_never_forecast(caplog):
    """What a block does that was compiled by itself: many calls for one step."""
    model, words = Timeless(), prompt()
    made = compiled(model)
    for _ in range(4):
        with ditcache.generation(timesteps=grid(4)), counting() as ran:
            for seed in range(12):
                same(made(noise(seed), words), model(noise(seed), words))
        assert ran["body"] == 24
    assert ditcache.summary(made).forecast == 0
    assert "more calls than timesteps" in caplog.text


class Breaking(Denoiser):
    def forward(self, hidden_states, timestep, encoder_hidden_states):
        temb = self.embed(timestep)
        h = self.blocks[0](count(hidden_states, "body"), temb, encoder_hidden_states)
        torch._dynamo.graph_break()
        h = self.blocks[1](h, temb, encoder_hidden_states)
        return (self.out(h) + 0 * timestep[:, None, None],)


def test_a_graph_break_costs_the_cache_and_nothing_else(caplog):
    model = Breaking()
    made = compiled(model)
    for seed in range(4):
        same(generate(made, seed), generate(model, seed))
    assert "graph break" in ditcache.summary(made).uncached[0]
    assert "graph break" in caplog.text


def test_gradients_pass_through_uncached(caplog):
    model = Denoiser().requires_grad_(True)
    made = compiled(model)
    with torch.enable_grad():
        for t in (0.9, 0.5):
            out = first(made(noise(), torch.tensor([t]), prompt()))
            out.square().sum().backward()
            gradient = model.out.weight.grad.clone()
            model.zero_grad()
            first(model(noise(), torch.tensor([t]), prompt())).square().sum().backward()
            torch.testing.assert_close(gradient, model.out.weight.grad)
            model.zero_grad()
    assert caplog.text.count("gradients are on") == 1
    for seed in range(2):
        generate(made, seed)
    with counting() as ran:
        generate(made, 2)
    assert ran["body"] == 6, "and without gradients the same model is cached"


@pytest.mark.parametrize("dynamic", [True, False, None])
def test_each_size_is_recorded_and_planned_also_as_a_symbol(dynamic):
    model = Denoiser()
    made = torch.compile(model, backend="ditcache", dynamic=dynamic, options={"inner": "eager"})
    for tokens in (6, 9):
        for seed, expected in ((0, 12), (1, 12), (2, 6)):
            with counting() as ran:
                ours = generate(made, seed, tokens=tokens)
            assert ran["body"] == expected
            theirs = generate(model, seed, tokens=tokens)
            assert (ours - theirs).norm() / theirs.norm() < (0.05 if expected == 6 else 1e-6)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = Denoiser()

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor, shift: int, flag: bool = False):
        out = first(self.base(x, timestep, text)) + shift / 100
        return -out if flag else out


def test_a_number_or_a_flag_changed_in_mid_generation_is_computed():
    model, text = Scaled(), prompt()
    made = compiled(model, profile_generations=1)
    for shift in (1, 2, 3):  # the third makes the number symbolic
        sample(lambda x, t, s=shift: made(x, t[None], text, s))
    for changed in ({"shift": 7}, {"shift": 3, "flag": True}):
        for i, t in enumerate(grid()):
            how = changed if i >= 6 else {"shift": 3}
            x = noise(5) * (1 - i / 100)
            ours, theirs = made(x, t[None], text, **how), model(x, t[None], text, **how)
            if i == 6:
                same(ours, theirs)
            torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.05)
