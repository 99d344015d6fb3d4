"""State never leaks: pipelines, threads and broken generations that share a compiled model."""

from __future__ import annotations

import threading

import ditcache
import pytest
import torch

from . import tiny_pipelines as tiny
from .observing import by_hand, close, follows, in_full, planned, same, steps_of, watched


def another(pipeline):
    """A second pipeline around the same model, with a scheduler of its own."""
    parts = {k: v for k, v in pipeline.components.items() if k != "scheduler"}
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    return tiny.quiet(type(pipeline)(scheduler=scheduler, **parts))


def test_two_pipelines_in_turn_follow_one_plan():
    first = tiny.flux()
    _, plan = planned(first)
    second = another(first)
    for seed in range(2):
        follows(first, plan, branches=2, seed=seed)
        follows(second, plan, branches=2, seed=seed + 10, true_cfg_scale=4.0)
        in_full(second, 2 * 6, seed=seed, num_inference_steps=6)  # on no plan's grid


def test_one_pipeline_started_in_the_middle_of_anothers_generation():
    """From a callback: the outer generation finds its steps out of turn and computes the rest."""
    outer = tiny.flux()
    made, plan = planned(outer)
    inner = another(outer)
    expected = by_hand(outer, plan, seed=5)
    found = []

    def nested(_, step, __, kept):
        if step == 3:
            found.append(tiny.generate(inner, 5))
        return kept

    with watched(made) as calls:
        ours = tiny.generate(outer, 1, callback_on_step_end=nested)
    close(found[0], expected)
    assert calls.computed[8:24] == steps_of(plan, 2)
    # The outer one goes on as if it had started late: with no memory of what was before.
    assert calls.computed[24:26] == [True, True]
    rest = calls.computed[24:]
    assert len(rest) == 8
    plain = tiny.generate(outer, 1)
    assert (ours - plain).norm() / plain.norm() < 0.05


def test_two_threads_each_with_a_pipeline():
    pipelines = [tiny.flux()]
    made, plan = planned(pipelines[0])
    pipelines.append(another(pipelines[0]))
    expected = [by_hand(pipelines[0], plan, seed=seed) for seed in range(4)]
    found = {}
    barrier = threading.Barrier(2)

    def run(which):
        barrier.wait()
        for seed in (which, which + 2):
            found[seed] = tiny.generate(pipelines[which], seed)

    with watched(made) as calls:
        threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed in range(4):
        close(found[seed], expected[seed])
    assert calls.total == 4 * 2 * plan.computed_steps


class Stop(Exception):
    pass


@pytest.mark.parametrize("step", [0, 3])
def test_an_exception_in_mid_generation_then_a_new_one(step):
    pipeline = tiny.flux()
    _, plan = planned(pipeline)

    def broken(_, at, __, kept):
        if at == step:
            raise Stop
        return kept

    for seed in (1, 2):  # the next generation has the same prompt and noise, or others
        with pytest.raises(Stop):
            tiny.generate(pipeline, 1, callback_on_step_end=broken)
        if seed == 1 and step == 0:
            continue  # the same first step again is the same step: nothing to tell them apart
        follows(pipeline, plan, branches=2, seed=seed)


def test_a_callback_that_interrupts_a_generation():
    pipeline = tiny.flux()
    made, plan = planned(pipeline)

    def interrupt(pipe, step, _, kept):
        pipe._interrupt = step == 4
        return kept

    how = {"callback_on_step_end": interrupt}
    with watched(made) as calls:
        ours = tiny.generate(pipeline, 1, **how)
    assert calls.computed == steps_of(plan, 2)[:10]
    close(ours, by_hand(pipeline, plan, seed=1, **how))
    follows(pipeline, plan, branches=2, seed=2)


def test_an_interrupted_generation_is_no_recording():
    """Two whole generations make the plan, whatever was broken off between them."""
    pipeline = tiny.sd3()
    made = torch.compile(pipeline.transformer, backend="ditcache", options={"inner": "eager"})
    pipeline.transformer = made

    def interrupt(pipe, step, _, kept):
        pipe._interrupt = step == 4
        return kept

    in_full(pipeline, 8, seed=0)
    tiny.generate(pipeline, 1, callback_on_step_end=interrupt)
    in_full(pipeline, 8, seed=2)
    with watched(made) as calls:
        tiny.generate(pipeline, 3)
    assert calls.total == 4


def test_a_callback_that_changes_the_latents():
    """The plan goes on; forecasts come from what the model gave, not from the latents."""
    pipeline = tiny.flux()
    made, plan = planned(pipeline)

    def nudged(_, step, __, kept):
        if step == 3:
            kept["latents"] = kept["latents"] * 0.9
        return kept

    how = {"callback_on_step_end": nudged}
    with watched(made) as calls:
        ours = tiny.generate(pipeline, 1, **how)
    assert calls.computed == steps_of(plan, 2)
    close(ours, by_hand(pipeline, plan, seed=1, **how))


def test_a_callback_that_changes_the_prompt_begins_anew():
    """Half of one prompt, half of another: nothing of the first is forecast into the second."""
    pipeline = tiny.flux()
    made, plan = planned(pipeline)

    def other(_, step, __, kept):
        if step == 3:
            kept["prompt_embeds"] = tiny.words(7)
        return kept

    how = {
        "callback_on_step_end": other,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    with watched(made) as calls:
        tiny.generate(pipeline, 1, **how)
    assert calls.computed[:8] == steps_of(plan, 2)[:8]
    assert calls.computed[8:10] == [True, True]


def test_batches_of_different_size_in_turn():
    pipeline = tiny.sd3()
    made, plan = planned(pipeline)
    for seed, batch in enumerate((1, 3, 1, 2, 3)):
        follows(pipeline, plan, seed=seed, batch=batch)
    assert ditcache.summary(made).fallbacks == {}


def test_equal_generations_in_a_row_give_equal_images():
    pipeline = tiny.flux()
    planned(pipeline)
    first = tiny.generate(pipeline, 1)
    tiny.generate(pipeline, 2)
    same(tiny.generate(pipeline, 1), first)
