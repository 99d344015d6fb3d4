"""Models from outside diffusers: inputs are told for what they are, or the user is told how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ditcache
import pytest
import torch
from torch import Tensor, nn

from . import foreign
from .foreign_runs import STEPS, Foreign, compiled, generate, is_planned, kinds, noise
from .outside import same

LABEL, BOTH = torch.tensor([3]), torch.tensor([3, 10])
TEXT, WORDS = noise(1, 5, 8, seed=5), noise(1, 4, foreign.DIM, seed=6)
KEEP = torch.tensor([[True, True, True, False, False]])

MODELS = {
    "DiT, positional, learned sigma": Foreign(
        foreign.OriginalDiT,
        (1, 4, 8, 8),
        lambda m, x, t: m(x, (999 * t).round().long().expand(1), LABEL)[:, :4],
        {"x": "latents", "t": "timestep", "y": "condition"},
    ),
    "DiT, guidance inside": Foreign(
        foreign.Guided,
        (1, 4, 8, 8),
        lambda m, x, t: m(torch.cat([x, x]), (999 * t).expand(2), BOTH, cfg_scale=3.0)[:1, :4],
        {"x": "latents", "t": "timestep", "y": "condition"},
    ),
    "U-ViT, latents second, bool mask, dictionary": Foreign(
        foreign.UViT,
        (1, 3, 8, 8),
        lambda m, x, t: m(TEXT, x, t[None], KEEP)["sample"],
        {"context": "condition", "img": "latents", "timesteps": "timestep", "keep": "condition"},
    ),
    "UNet, keywords": Foreign(
        foreign.KeywordUNet,
        (1, 3, 8, 8),
        lambda m, x, t: m(noise_level=t[None], class_id=LABEL, noisy_images=x),
        {"noisy_images": "latents", "noise_level": "timestep", "class_id": "condition"},
    ),
    "EDM, sigma [B,1,1,1]": Foreign(
        foreign.Preconditioned,
        (1, 3, 8, 8),
        lambda m, x, t: (x - m(x, t.reshape(1, 1, 1, 1), LABEL)) / t,
        {"x": "latents", "sigma": "timestep", "class_labels": "condition"},
        times=(5.0, 0.1),
    ),
    "tokens, channels last, a time each, complex buffer, dataclass": Foreign(
        foreign.Tokens,
        (1, 3, 4, 6),
        lambda m, x, t: m(WORDS.to(x.dtype), t.expand(1, 12), x).velocity,
        {"frames": "latents", "ts": "timestep", "text": "condition", "rope": "parameter"},
    ),
}


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


CASES = [(name, torch.float32) for name in MODELS]
CASES += [(name, dtype) for name in list(MODELS)[-1:] for dtype in (torch.bfloat16, torch.float16)]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_inputs_are_recognised_and_a_plan_means_what_it_says(name, dtype):
    case = MODELS[name]
    model = foreign.build(case.cls, dtype=dtype)
    made = compiled(model, computed_steps=4)
    for seed in range(2):
        same(generate(case, made, seed), generate(case, model, seed))
    found = kinds(model)
    assert {k: found[k] for k in case.kinds} == case.kinds
    is_planned(case, model, made)


@dataclass(frozen=True)
class Unclear:
    """A model of which an input cannot be told; the option that helps, and what is said."""

    case: Foreign
    inputs: dict[str, str]
    says: tuple[str, ...]


LAST: list[Tensor] = []


def self_conditioned(model: Any, x: Tensor, t: Tensor) -> Tensor:
    """Calls the model on its last prediction, zero at the first step."""
    if float(t) == 1.0:
        LAST[:] = [torch.zeros_like(x)]
    LAST[:] = [model(x, t[None], LAST[0])]
    return LAST[0]


UNCLEAR = {
    "self-conditioning": Unclear(
        Foreign(foreign.SelfConditioned, (1, 3, 8, 8), self_conditioned, {}),
        {"x_self_cond": "latents"},
        ("'x_self_cond' changes at every call", "{'x_self_cond': 'latents'}"),
    ),
    "two times": Unclear(
        Foreign(
            foreign.TwoTimes, (1, 3, 8, 8), lambda m, x, t: m(x, t[None], t[None] - 1 / STEPS), {}
        ),
        {"r": "timestep"},
        ("'r' changes at every call", "{'r': 'timestep'}"),
    ),
    "no telling names": Unclear(
        Foreign(
            foreign.Unnamed, (1, 3, 8, 8), lambda m, x, t: m(x, t[None], torch.tensor([2.0])), {}
        ),
        {"b": "timestep"},
        ("No input tells the time", "inputs are: b, c", "'timestep'}"),
    ),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_cannot_be_told_is_computed_in_full_and_the_option_named(name, caplog):
    unclear = UNCLEAR[name]
    case, model = unclear.case, foreign.build(unclear.case.cls)
    made = compiled(model, computed_steps=4)
    for seed in range(3):
        same(generate(case, made, seed), generate(case, model, seed))
    assert ditcache.summary(made).forecast == 0
    for text in unclear.says:
        assert text in caplog.text


@pytest.mark.parametrize("name", UNCLEAR)
def test_with_the_option_it_is_cached(name):
    unclear = UNCLEAR[name]
    case, model = unclear.case, foreign.build(unclear.case.cls)
    made = compiled(model, computed_steps=4, inputs=unclear.inputs)
    for seed in range(2):
        same(generate(case, made, seed), generate(case, model, seed))
    is_planned(case, model, made)


class Discrete(nn.Module):
    """A masked language diffusion model: its latents are token numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, ids: Tensor, t: Tensor) -> Tensor:
        return self.head(self.embedding(ids) * t[:, None, None])


def test_discrete_latents_are_refused():
    model, ids = foreign.build(Discrete), torch.arange(6)[None]
    made = compiled(model)
    for t in (0.9, 0.5, 0.1):
        same(made(ids, torch.tensor([t])), model(ids, torch.tensor([t])))
    assert "no denoising step" in ditcache.summary(made).uncached[0]
