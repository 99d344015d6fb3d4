"""Skipped steps past Dynamo's guards: taken where nothing changed, and nothing else is lost."""

from __future__ import annotations

import copy
import io
import threading

import ditcache
import pytest
import torch
from torch import Tensor, nn

from .helpers import Denoiser, compiled, counting, generate, noise, planned, prompt
from .shortcuts import SKIPPED, running, shortcuts


def test_every_skipped_step_takes_it_and_gives_the_same():
    _, made, plan = running()
    before = shortcuts(made)
    with counting() as ran:
        short = generate(made, seed=3)
    assert shortcuts(made) - before == SKIPPED
    assert ran["body"] == plan.computed_steps
    assert ditcache.summary(made).calls == 1 + 2 * 12
    other = compiled(Denoiser(), policy="none", shortcut=False)
    other(noise(), torch.ones(1), prompt())
    ditcache.apply(other, plan)
    assert torch.equal(generate(other, seed=3), short)
    assert shortcuts(other) == 0
    assert ditcache.summary(other).forecast == SKIPPED


@pytest.mark.parametrize("fullgraph", [False, True])
def test_shortcuts_are_taken_with_and_without_fullgraph(fullgraph: bool):
    model = torch.compile(
        Denoiser(), backend="ditcache", fullgraph=fullgraph, options={"inner": "eager"}
    )
    for _ in range(4):
        generate(model)
    assert shortcuts(model) > 0


def test_hooks_run_at_skipped_steps():
    model, made, _ = running()
    seen: list[str] = []
    model.register_forward_pre_hook(lambda *_: seen.append("before"))
    model.register_forward_hook(lambda *_: seen.append("after"))
    generate(made, seed=1)
    assert seen == ["before", "after"] * 12


class Counts(Denoiser):
    """A model that writes into itself, and one of its callers' lists, at each call."""

    def __init__(self, log: list[int]) -> None:
        super().__init__()
        self.log = log

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> tuple[Tensor]:
        self.log.append(1)
        return super().forward(hidden_states, timestep, encoder_hidden_states)


def test_side_effects_are_kept():
    log: list[int] = []
    made, _ = planned(Counts(log))
    log.clear()
    generate(made)
    assert len(log) == 12
    assert shortcuts(made) == 0


def test_two_threads_at_once_get_their_own_images():
    _, made, _ = running()
    expected = {s: generate(made, seed=s) for s in (1, 2)}
    got: dict[int, Tensor] = {}

    @torch.no_grad()
    def work(seed: int) -> None:
        for _ in range(3):
            got[seed] = generate(made, seed=seed)

    threads = [threading.Thread(target=work, args=(s,)) for s in expected]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(got[s], expected[s]) for s in expected)


def test_it_leaves_with_remove_and_stays_out_of_copies():
    model, made, _ = running()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.out.weight.mul_(2)
        doubled = copied(noise(), torch.ones(1), prompt())[0]
        plain = model(noise(), torch.ones(1), prompt())[0]
    assert not torch.equal(doubled, plain)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(loaded(noise(), torch.ones(1), prompt())[0], plain)
    assert "forward" in vars(model)
    ditcache.remove(made)
    assert "forward" not in vars(model)


def test_something_else_in_front_of_forward_is_left_alone():
    model = Denoiser()
    model.forward = model.forward  # as libraries that wrap a model do
    made, _ = planned(model)
    generate(made)
    assert shortcuts(made) == 0


def test_traced_as_a_part_it_is_the_model():
    model, _, _ = running()

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
            return self.inner(x, t, text)[0] * 2

    whole = torch.compile(Outer(), backend="eager", fullgraph=True)
    x, t, text = noise(), torch.ones(1), prompt()
    with torch.no_grad():
        assert torch.equal(whole(x, t, text), model(x, t, text)[0] * 2)
