"""What sends a skipped step back to Dynamo's guards: another model, other inputs, a NaN."""

from __future__ import annotations

from dataclasses import replace

import ditcache
import pytest
import torch
from ditcache.runtime.model_state import ModelState
from torch import Tensor, nn

from .helpers import (
    Denoiser,
    compiled,
    counting,
    euler,
    first,
    generate,
    grid,
    make_plan,
    noise,
    prompt,
)
from .shortcuts import SKIPPED, running, shortcuts


def sample_changing(model, at: int, change, seed: int = 0) -> Tensor:
    """A generation in which `change()` is called right before step `at`."""
    text = prompt(seed)

    def forward(x: Tensor, t: Tensor, i: int) -> Tensor:
        if i == at:
            change()
        return first(model(x, t.expand(len(x)), text))

    return euler(forward, noise(seed), grid())


def both_ways(scenario, build=Denoiser) -> int:
    """A scenario run with shortcuts gives what it gives without; how many were taken in it.

    `scenario(made, model)` gives latents; runs of the model's body are compared as well.
    """
    results: list[Tensor] = []
    ran: list[int] = []
    taken = 0
    for shortcut in (False, True):
        torch._dynamo.reset()
        model = build()
        made = compiled(model, policy="none", shortcut=shortcut)
        made(noise(), torch.ones(1), prompt())
        ditcache.apply(made, make_plan(model))
        generate(made)
        taken = shortcuts(made)
        assert bool(taken) == shortcut
        with counting() as counted:
            results.append(scenario(made, model))
        ran.append(counted["body"])
        taken = shortcuts(made) - taken
    assert ran[0] == ran[1]
    assert torch.equal(results[0], results[1])
    return taken


def _replace_submodule(model: Denoiser) -> None:
    torch.manual_seed(3)
    model.blocks[0].up = nn.Linear(16, 32).requires_grad_(False).eval()


def _replace_parameter(model: Denoiser) -> None:
    model.out.weight = nn.Parameter(model.out.weight * 2, requires_grad=False)


def _write_the_books(model: Denoiser) -> None:
    model.out._parameters["weight"] = nn.Parameter(model.out.weight * 2, requires_grad=False)


def _train(model: Denoiser) -> None:
    model.train()


def _set_an_attribute(model: Denoiser) -> None:
    model.blocks[1].scaling = 2.0


CHANGES = [_replace_submodule, _replace_parameter, _write_the_books, _train, _set_an_attribute]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model_is_seen(change):
    model = Denoiser()
    state = ModelState(model)
    generate(model)
    assert state.unchanged()
    change(model)
    assert not state.unchanged()


@pytest.mark.parametrize("change", [_replace_submodule, _train])
def test_a_change_in_mid_generation_goes_to_the_guards(change):
    """At step 5, which the plan skips: an adapter loaded by a callback, say."""
    both_ways(lambda made, model: sample_changing(made, 5, lambda: change(model), seed=1))


class Adapted(nn.Module):
    """A layer whose extra part is scaled by an entry of a dict, as adapters are."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.scaling = {"default": 1.0}
        self.active = ["default"]

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * sum(self.scaling[a] for a in self.active)


def adapted() -> Denoiser:
    model = Denoiser()
    model.out = Adapted(model.out)
    return model


@pytest.mark.parametrize("what", ["scaling", "active", "loaded"])
def test_an_adapter_in_mid_generation_is_not_missed(what: str):
    def change(model: Denoiser) -> None:
        if what == "scaling":
            model.out.scaling["default"] = 0.5
        elif what == "active":
            model.out.active.append("default")
        else:
            model.out = Adapted(model.out)
            model.out.scaling["default"] = 0.5

    taken = both_ways(
        lambda made, model: sample_changing(made, 5, lambda: change(model), seed=2), adapted
    )
    assert taken < SKIPPED  # the adapter began a generation of its own


def test_other_inputs_go_to_the_guards():
    _, made, _ = running()
    text, before = prompt(0), shortcuts(made)
    made(noise(0), grid()[:1], text)
    made(noise(0).expand(2, -1, -1), grid()[2].expand(2), text.expand(2, -1, -1))  # shape
    made(noise(0).transpose(1, 2).contiguous().transpose(1, 2), grid()[2:3], text)  # strides
    made(noise(0).double().float().requires_grad_(), grid()[2:3], text)
    made(hidden_states=noise(0), timestep=grid()[2:3], encoder_hidden_states=text)
    assert shortcuts(made) == before


def test_another_prompt_in_mid_generation_goes_to_the_guards():
    texts = [prompt(0), prompt(1)]

    def scenario(made, _) -> Tensor:
        return euler(lambda x, t, i: first(made(x, t.expand(1), texts[i >= 5])), noise(), grid())

    assert both_ways(scenario) < SKIPPED


def test_gradient_mode_switched_in_mid_generation_goes_to_the_guards():
    def scenario(made, _) -> Tensor:
        def forward(x: Tensor, t: Tensor, i: int) -> Tensor:
            with torch.set_grad_enabled(i >= 5):
                return first(made(x, t.expand(1), text))

        text = prompt(4)
        return euler(forward, noise(4), grid())

    assert both_ways(scenario) < SKIPPED


def test_stances_go_to_the_guards():
    _, made, _ = running()
    before = shortcuts(made)
    with counting() as ran, torch.compiler.set_stance("force_eager"):
        generate(made, seed=5)
    assert ran["body"] == 12  # eager means the model itself
    assert shortcuts(made) == before


def test_a_nan_is_left_to_the_guarded_way():
    _, made, _ = running()
    text, before = prompt(0), ditcache.summary(made).forecast

    def forward(x: Tensor, t: Tensor, i: int) -> Tensor:
        x = x if i != 4 else torch.full_like(x, float("nan"))
        return torch.nan_to_num(first(made(x, t.expand(1), text)))

    with ditcache.generation():
        euler(forward, noise(), grid())
    assert ditcache.summary(made).forecast - before == 2  # before the NaN
    assert ditcache.summary(made).fallbacks["NaN or infinity in a forecast"]


class Similar(Denoiser):
    """Ends in a product without weights: a step that forecasts all blocks still costs something."""

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> tuple[Tensor]:
        (h,) = super().forward(hidden_states, timestep, encoder_hidden_states)
        return (torch.softmax(h @ h.transpose(1, 2), dim=-1) @ h,)


def test_a_nan_forecast_costs_what_it_costs_without_shortcuts():
    macs: list[int] = []
    taken: list[int] = []
    for shortcut in (False, True):
        torch._dynamo.reset()
        model = Similar()
        model.out = nn.Identity()
        made = compiled(model, policy="none", shortcut=shortcut)
        made(noise(), torch.ones(1), prompt())
        plan = make_plan(model)
        blocks = replace(plan.regions[0], region="blocks[:]")
        ditcache.apply(made, replace(plan, regions=(blocks,)))
        generate(made)
        before = ditcache.summary(made)
        text = prompt(0)

        def forward(x: Tensor, t: Tensor, i: int, made=made, text=text) -> Tensor:
            x = x if i != 4 else torch.full_like(x, float("nan"))
            return torch.nan_to_num(first(made(x, t.expand(1), text)))

        with ditcache.generation():
            euler(forward, noise(), grid())
        after = ditcache.summary(made)
        assert after.fallbacks["NaN or infinity in a forecast"]
        macs.append(after.macs - before.macs)
        taken.append(after.shortcuts - before.shortcuts)
    assert taken == [0, 2]  # before the NaN
    assert macs[0] == macs[1]
