"""The clock: whatever the order of calls, none is counted to a generation that it is not of."""

from __future__ import annotations

import threading
from collections import defaultdict

import ditcache
import torch
from ditcache.runtime.clock import CONDITION_CHANGED, MAX_TRACKS, TOO_MANY_CALLS, Clock
from hypothesis import given, settings
from hypothesis import strategies as st

from .helpers import latents


def tick(clock, t, x, *conditions):
    return clock.tick(t, x, conditions)


def test_a_generation_counts_its_steps():
    clock, text = Clock(), torch.ones(3)
    moments = [tick(clock, t, latents(0, 1 - t), text) for t in (1.0, 0.7, 0.5, 0.1)]
    assert [m.step for m in moments] == [0, 1, 2, 3]
    assert [m.starts for m in moments] == [True, False, False, False]
    assert {(m.serial, m.branch) for m in moments} == {(0, "")}
    again = tick(clock, 1.0, latents(1), text)
    assert (again.serial, again.step, again.cause) == (1, 0, "the timestep went back")


def test_rising_time_counts_as_well():
    clock = Clock()
    moments = [tick(clock, t, latents(0, t)) for t in (0.0, 0.25, 0.5, 0.75)]
    assert [(m.serial, m.step) for m in moments] == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert tick(clock, 0.0, latents(1)).serial == 1


def test_two_calls_on_the_same_latents_are_branches():
    clock, cond, uncond = Clock(), torch.zeros(3), torch.ones(4)
    for i, t in enumerate((1.0, 0.5, 0.2)):
        x = latents(0, 1 - t)
        one, two = tick(clock, t, x, cond), tick(clock, t, x.clone(), uncond)
        assert (one.branch, one.step, one.serial) == ("", i, 0)
        assert (two.branch, two.step, two.serial) == ("#1", i, 0)


def test_named_branches_and_one_that_joins_later():
    clock = Clock()
    for i, t in enumerate((1.0, 0.8, 0.6, 0.4)):
        with ditcache.branch("cond"):
            assert tick(clock, t, latents(0, 1 - t), torch.zeros(1)).branch == "cond"
        if i in (1, 3):
            with ditcache.branch("uncond"):
                moment = tick(clock, t, latents(0, 1 - t), torch.ones(1))
                assert (moment.branch, moment.step, moment.serial) == ("uncond", i, 0)


def test_swapped_unnamed_branches_are_not_mixed_up():
    clock, cond, uncond = Clock(), torch.zeros(3), torch.ones(3)
    x = latents(0)
    tick(clock, 1.0, x, cond)
    tick(clock, 1.0, x, uncond)
    x = latents(0, 0.1)
    assert tick(clock, 0.9, x, uncond).cause == CONDITION_CHANGED


def test_another_prompt_in_the_second_branch_only():
    clock, cond = Clock(), torch.zeros(3)
    x = latents(0)
    tick(clock, 1.0, x, cond)
    tick(clock, 1.0, x, torch.ones(3))
    x = latents(0, 0.1)
    assert not tick(clock, 0.9, x, cond).cause
    assert tick(clock, 0.9, x, 2 * torch.ones(3)).cause == CONDITION_CHANGED


def test_a_condition_changed_in_place_or_by_value():
    clock, text = Clock(), torch.zeros(3)
    tick(clock, 1.0, latents(0), text)
    assert not tick(clock, 0.9, latents(0, 0.1), text.clone()).cause
    text.add_(1)
    assert tick(clock, 0.8, latents(0, 0.2), text).cause == CONDITION_CHANGED
    assert tick(clock, 0.7, latents(0, 0.3), text, 4).cause == CONDITION_CHANGED
    assert tick(clock, 0.6, latents(0, 0.4), text, 5).cause == CONDITION_CHANGED
    assert not tick(clock, 0.5, latents(0, 0.5), text, 5).cause


def test_batch_or_dtype_changed_in_mid_generation():
    clock = Clock()
    tick(clock, 1.0, latents(0))
    assert tick(clock, 0.9, latents(0, shape=(2, 64, 8))).cause == "changed shape"
    assert tick(clock, 0.8, latents(0, shape=(2, 64, 8)).half()).cause == "changed shape"


def test_other_latents_at_one_timestep_begin_a_generation():
    clock = Clock()
    tick(clock, 1.0, latents(0))
    assert tick(clock, 1.0, latents(1)).starts
    x = latents(1)
    tick(clock, 1.0, x)
    x.add_(1)
    assert tick(clock, 1.0, x).starts, "written to since"


def test_one_call_over_and_over_does_not_grow_without_bound():
    clock, x = Clock(), latents(0)
    names = {tick(clock, 1.0, x).branch for _ in range(100)}
    assert len(names) < 12


def test_nan_latents_and_timesteps_never_continue():
    clock = Clock()
    for t in (1.0, 0.9, 0.8):
        assert tick(clock, t, torch.full((1, 8), torch.nan)).starts


def test_explicit_generations_of_one_thread_do_not_mix():
    clock = Clock()
    scopes = [ditcache.generation(), ditcache.generation()]
    from contextvars import copy_context

    contexts = [copy_context(), copy_context()]
    for s, c in zip(scopes, contexts, strict=True):
        c.run(s.__enter__)
    for i, t in enumerate((1.0, 0.6, 0.3)):
        for seed, c in enumerate(contexts):
            moment = c.run(tick, clock, t, latents(seed, 1 - t))
            assert (moment.step, moment.serial) == (i, 0)
    for s, c in zip(scopes, contexts, strict=True):
        c.run(s.__exit__, None, None, None)


def test_without_a_timestep_only_a_grid_tells():
    clock = Clock()
    assert clock.tick(None, latents(0), []) is None
    with ditcache.generation():
        assert clock.tick(None, latents(0), []) is None
    with ditcache.generation(timesteps=[3.0, 2.0, 1.0]):
        moments = [clock.tick(None, latents(0), []) for _ in range(3)]
        assert [(m.step, m.timestep) for m in moments] == [(0, 3.0), (1, 2.0), (2, 1.0)]
        assert clock.tick(None, latents(0), []).cause == TOO_MANY_CALLS


def test_without_a_timestep_branches_share_a_step():
    clock = Clock()
    with ditcache.generation(timesteps=torch.tensor([1.0, 0.5])):
        for step in range(2):
            for name in ("cond", "uncond"):
                with ditcache.branch(name):
                    assert clock.tick(None, None, []).step == step


def test_threads_have_tracks_of_their_own():
    clock, found = Clock(), defaultdict(list)
    barrier = threading.Barrier(4)

    def run(seed: int) -> None:
        for t in (1.0, 0.5, 0.25):
            barrier.wait()
            found[seed].append(tick(clock, t, latents(seed, 1 - t)))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all([m.step for m in ms] == [0, 1, 2] for ms in found.values())
    assert len({ms[0].track for ms in found.values()}) == 4


def test_tracks_are_bounded():
    clock = Clock()
    for _ in range(3 * MAX_TRACKS):
        with ditcache.generation():
            tick(clock, 1.0, latents(0))
    assert len(clock._tracks) <= MAX_TRACKS


def test_latents_that_are_made_of_the_last_output_belong_to_the_generation():
    """A scheduler that clips keeps little of the latents: what the model gave is in the next."""
    noise, given, other = latents(0), latents(1), latents(2)
    for later, serial in ((0.1 * noise + 0.9 * given, 0), (0.1 * noise + 0.9 * other, 1)):
        clock = Clock()
        clock.gave(tick(clock, 1.0, noise), (given,))
        assert tick(clock, 0.5, later).serial == serial


def test_guided_outputs_of_both_halves_of_a_batch_count():
    noise, cond, uncond = (latents(seed) for seed in range(3))
    clock = Clock()
    first = tick(clock, 1.0, noise.repeat(2, 1, 1))
    clock.gave(first, (torch.cat([cond, uncond]),))
    guided = 0.1 * noise + uncond + 3.0 * (cond - uncond)
    assert tick(clock, 0.5, guided.repeat(2, 1, 1)).serial == first.serial


@st.composite
def interleavings(draw):
    """Calls of several generations in any order, each in its own order of steps.

    Generation g has its own latents; its prompt may be another's, and its grid too.
    """
    count = draw(st.integers(2, 4))
    prompts = [draw(st.integers(0, 1)) for _ in range(count)]
    steps = [draw(st.integers(1, 6)) for _ in range(count)]
    left = [g for g in range(count) for _ in range(steps[g])]
    order = draw(st.permutations(left))
    branches = draw(st.booleans())
    return prompts, order, branches


@settings(max_examples=150, deadline=None)
@given(interleavings())
def test_property_no_call_is_counted_to_another_generation(case):
    prompts, order, branches = case
    clock = Clock()
    texts = [torch.full((4,), float(p)) for p in prompts]
    done: dict[int, int] = defaultdict(int)
    owner: dict[tuple[int, str], int] = {}
    steps: dict[tuple[int, str], list[int]] = defaultdict(list)
    for g in order:
        i = done[g]
        done[g] += 1
        x = latents(g, i / 10)
        for text in (texts[g], -texts[g] - 1) if branches else (texts[g],):
            moment = tick(clock, 1 - i / 10, x, text)
            key = (moment.serial, moment.branch)
            assert owner.setdefault((moment.serial, ""), g) == g, "two owners of one generation"
            steps[key].append(i)
            # Within a generation the steps are counted one by one, whichever one came first.
            assert moment.step <= i
    for seen in steps.values():
        assert seen == sorted(seen)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 2), st.integers(0, 2)), max_size=20))
def test_property_any_calls_keep_the_clock_consistent(calls):
    clock = Clock()
    last = None
    for t, seed, text in calls:
        moment = tick(clock, t, latents(seed, 1 - t), torch.full((2,), float(text)))
        assert moment.timestep == t
        if last is None or moment.starts:
            assert moment.step == 0
        else:
            assert moment.serial == last.serial
            assert moment.step - last.step == (t != last.timestep)
        last = moment
