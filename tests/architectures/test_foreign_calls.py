"""Foreign ways to call and to compile a model."""

from __future__ import annotations

from typing import Any

import ditcache
import pytest
import torch
from ditcache.runtime.session import session_of
from torch import Tensor

from . import foreign
from .foreign_runs import STEPS, Foreign, compiled, generate, is_planned, kinds, noise
from .outside import planned_by_hand, same

LABEL = torch.tensor([3])
UNET = Foreign(
    foreign.KeywordUNet,
    (1, 3, 8, 8),
    lambda m, x, t: m(noise_level=t[None], class_id=LABEL, noisy_images=x),
    {},
)


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_a_step_counted_in_python_is_the_time_from_its_second_value_on(caplog):
    """A number is a constant to Dynamo until it changes: the very first call does not tell it."""
    case = Foreign(
        foreign.Counted,
        (1, 3, 8, 8),
        lambda m, x, t: m(x, int(1000 * t), None)["prediction"]["eps"],
        {},
    )
    model = foreign.build(case.cls)
    made = compiled(model, computed_steps=4)
    for seed in range(3):
        same(generate(case, made, seed), generate(case, model, seed))
    ditcache.reset(made)
    is_planned(case, model, made)
    assert kinds(model, 1) == kinds(model) | {"step": "timestep"}
    assert "no timestep" not in caplog.text


def test_generations_that_never_agree_are_explained(caplog):
    """What a model keeps as an attribute looks like a weight, and is another every time."""
    case = Foreign(foreign.Recurrent, (1, 3, 8, 8), lambda m, x, t: m(x, t[None]), {})
    made = compiled(foreign.build(case.cls), computed_steps=4)
    plain = foreign.build(case.cls)
    for seed in range(6):
        same(generate(case, made, seed), generate(case, plain, seed))
    assert ditcache.summary(made).forecast == 0
    assert caplog.text.count("which differ in weights;") == 1


def test_a_compiled_function_is_cached_and_the_module_is_asked_for():
    case, model = UNET, foreign.build(UNET.cls)

    def denoise(**inputs: Tensor) -> Tensor:
        return model(**inputs)

    made = compiled(denoise, computed_steps=4)
    made.parameters = model.parameters  # generate() looks there for the dtype
    for seed in range(2):
        same(generate(case, made, seed), generate(case, model, seed))
    with pytest.raises(TypeError, match="give the module that it calls"):
        ditcache.summary(made)
    generate(case, made, 2)
    assert ditcache.summary(model).forecast == 4


def test_a_model_compiled_in_place_is_planned_too():
    case = UNET
    model, plain = foreign.build(case.cls), foreign.build(case.cls)
    options = {"inner": "eager", "remember": False, "computed_steps": 4}
    model.compile(backend="ditcache", options=options)
    for seed in range(2):
        same(generate(case, model, seed), generate(case, plain, seed))
    ours, session = generate(case, model, 2), session_of(model)
    assert session is not None
    with planned_by_hand(plain, session.plans[0], branches=1):
        torch.testing.assert_close(ours, generate(case, plain, 2), rtol=1e-5, atol=1e-5)
    assert ditcache.summary(model).forecast == 4


def test_gradients_of_the_sample_now_and_then_are_those_of_the_plain_model():
    """Guidance by a gradient: such calls compute, outside of the plan, and spoil nothing of it."""
    model = foreign.build(foreign.KeywordUNet)
    made = compiled(model, computed_steps=4)
    grid = torch.linspace(1.0, 0.0, STEPS + 1)

    def guided(net: Any, seed: int) -> tuple[Tensor, list[Tensor]]:
        x, pulls = noise(1, 3, 8, 8, seed=seed), []
        for i in range(STEPS):
            inputs = {"noise_level": grid[i][None], "class_id": LABEL}
            with torch.no_grad():
                v = net(noisy_images=x, **inputs)
            if i % 3 == 2:
                leaf = x.clone().requires_grad_()
                pull = torch.autograd.grad(net(noisy_images=leaf, **inputs).square().sum(), leaf)
                pulls.append(pull[0])
                v = v + 0.01 * pull[0]
            x = x + (grid[i + 1] - grid[i]) * v
        return x, pulls

    for seed in range(2):
        same(guided(made, seed)[0], guided(model, seed)[0])
    ours, pulls = guided(made, 2)
    theirs, plain = guided(model, 2)
    assert ditcache.summary(made).forecast == 4
    assert (ours - theirs).norm() < 0.05 * theirs.norm()
    for one, two in zip(pulls, plain, strict=True):  # taken where the sample is, which has moved
        assert (one - two).norm() < 0.1 * two.norm()
