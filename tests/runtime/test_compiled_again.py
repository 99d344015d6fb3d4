"""One model compiled twice: each compilation keeps its own inner compiler and its own shortcut."""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import ditcache
import pytest
import torch
from ditcache.runtime.session import session_of
from torch._dynamo.backends.registry import _COMPILER_FNS, register_backend

from .helpers import Denoiser, compiled, generate, make_plan, noise, prompt

RAN: Counter[str] = Counter()


@pytest.fixture(params=["ditcache_tests_one", "ditcache_tests_two"])
def counted(request: pytest.FixtureRequest) -> str:
    """A registered inner compiler whose pieces count their runs under its name."""
    name: str = request.param

    def compile_piece(gm, example_inputs):
        def run(*args):
            RAN[name] += 1
            return gm.forward(*args)

        return run

    if name not in _COMPILER_FNS:
        register_backend(compile_piece, name=name)
    RAN.clear()
    return name


def started(model: Denoiser, **options):
    made = compiled(model, policy="none", **options)
    made(noise(), torch.ones(1), prompt())
    return made


def shortcuts_of(made, model: Denoiser) -> tuple[int, torch.Tensor]:
    before = ditcache.summary(model).shortcuts
    out = generate(made, seed=3)
    return ditcache.summary(model).shortcuts - before, out


@pytest.mark.parametrize("first", [True, False], ids=["with first", "without first"])
def test_a_shortcut_belongs_to_the_compilation_that_asked_for_it(first: bool):
    model = Denoiser()
    one, two = started(model, shortcut=first), started(model, shortcut=not first)
    plan = make_plan(model)
    ditcache.apply(model, plan)
    generate(one)
    generate(two)  # what a call looks like is learned in a first generation
    skipped = len(plan.timesteps) - plan.computed_steps
    taken, out = shortcuts_of(one, model)
    assert taken == (skipped if first else 0)
    again, other = shortcuts_of(two, model)
    assert again == (0 if first else skipped)
    assert torch.equal(out, other)


def test_a_second_inner_compiler_leaves_the_first_one_its_own(counted: str):
    model = Denoiser()
    one = started(model, inner=counted)
    two = started(model, inner="eager")
    ditcache.apply(model, make_plan(model))
    RAN.clear()
    out = generate(one)  # its variants under the plan are lowered only now
    assert RAN[counted]
    RAN.clear()
    torch.testing.assert_close(generate(two), out, rtol=1e-5, atol=1e-5)
    assert not RAN


def test_a_new_shape_of_the_first_takes_the_first_ones_options_again(counted: str):
    model = Denoiser()
    one = started(model, inner=counted)
    started(model, inner="eager")
    RAN.clear()
    one(noise(tokens=9), torch.ones(1), prompt())
    assert RAN[counted]


def test_other_options_of_the_plan_take_effect_for_the_model():
    model = Denoiser()
    started(model)
    assert ditcache.summary(model).policy == "none"
    compiled(model, speedup=3.0)(noise(), torch.ones(1), prompt())
    assert ditcache.summary(model).policy == "edf"


def test_calls_of_the_first_go_on_being_counted():
    model = Denoiser()
    one = compiled(model, policy="exact")
    generate(one)
    started(model)
    before = ditcache.summary(model)
    generate(one)
    after = ditcache.summary(model)
    saved = (after.macs_uncached - before.macs_uncached) / (after.macs - before.macs)
    assert 1.0 < saved < 1.5, "the timestep's and the prompt's work is all that is hoisted"
    assert after.hoist_hits["condition"] > before.hoist_hits.get("condition", 0)


def test_what_dynamo_forgets_is_freed():
    model = Denoiser()
    made = compiled(model, policy="exact")
    generate(made)
    ditcache.apply(model, make_plan(model))
    for _ in range(3):
        generate(made)
        generate(made)  # a shortcut has learned the call, and knows who ran it
        assert ditcache.summary(model).shortcuts
        session = session_of(model)
        assert session is not None
        known = [weakref.ref(executor) for executor in session.executors]
        assert known
        assert ditcache.summary(model).hoisted_bytes
        torch._dynamo.reset()
        gc.collect()
        assert not any(ref() for ref in known)
        assert not ditcache.summary(model).hoisted_bytes


def test_other_options_free_what_was_hoisted_before():
    model = Denoiser()
    held = [
        hoisted_by(compiled(model, policy="exact", hoist_budget=budget), model)
        for budget in (2**20, 2**21, 2**22)
    ]
    assert held[0] > 0
    assert held == held[:1] * 3


def hoisted_by(made, model: Denoiser) -> int:
    generate(made)
    return ditcache.summary(model).hoisted_bytes
