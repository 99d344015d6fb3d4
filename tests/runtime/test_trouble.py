"""When something goes wrong, or changes, in mid-generation: compute, count it, say it once."""

from __future__ import annotations

import ditcache
import pytest
import torch

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
    planned,
    prompt,
    same,
)


def walk(made, model, change, steps=12):
    """Both models side by side; `change(i)` gives the i-th call's (x, t, text)."""
    for i in range(steps):
        call = change(i)
        yield i, first(made(*call)), first(model(*call))


def test_a_changed_grid_is_computed_counted_and_said_once(caplog):
    model = Denoiser()
    made, _ = planned(model)
    for seed in range(2):
        with counting() as ran:
            ours = generate(made, seed, timesteps=grid(9))
        assert ran["body"] == 9
        same(ours, generate(model, seed, timesteps=grid(9)))
    assert ditcache.summary(made).fallbacks == {"unknown step": 16}
    assert caplog.text.count("unknown step") == 1


def test_a_step_off_the_grid_ends_forecasting_for_the_generation():
    model = Denoiser()
    made, plan = planned(model)
    times = grid().clone()
    times[5] = (times[4] + times[5]) / 2
    x, text = noise(), prompt()
    with counting() as ran:
        for i, t in enumerate(times):
            out = first(made(x, t[None], text))
            if i >= 5:
                same(out, first(model(x, t[None], text)))
    # Steps 0, 1, 4 of the plan, then all; the reference calls count as well.
    assert ran["body"] == 3 + 2 * 7
    assert ditcache.summary(made).fallbacks["unknown step"] == 7
    with counting() as ran:
        generate(made)
    assert ran["body"] == plan.computed_steps


def test_batch_size_changed_in_mid_generation():
    model = Denoiser()
    made, _ = planned(model)
    times = grid()

    def call(i):
        batch = 1 if i < 5 else 3
        return noise(batch=batch), times[i].expand(batch), prompt(batch=batch)

    for i, ours, theirs in walk(made, model, call):
        assert ours.shape == theirs.shape
        if 5 <= i < 11:  # by step 11 the larger batch has computed all that its forecast needs
            same(ours, theirs)


def test_a_dtype_changed_in_mid_generation_is_computed():
    model = Denoiser()

    class Any(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = model

        def forward(self, x, timestep, text):
            return (first(self.base(x.float(), timestep, text)).to(x.dtype),)

    outer = Any()
    made, _ = planned(outer)
    times = grid()
    for i, ours, theirs in walk(
        made,
        outer,
        lambda i: (noise().to(torch.half if i > 4 else torch.float), times[i][None], prompt()),
    ):
        assert ours.dtype == theirs.dtype
        if 4 < i < 11:
            same(ours, theirs)


def test_a_forecast_that_is_not_finite_is_computed_instead(caplog):
    model = Denoiser().half()
    made = compiled(model, policy="none")
    x, text = noise(dtype=torch.half), prompt(dtype=torch.half)
    made(x, torch.ones(1).half(), text)
    plan = make_plan(model, computed=(0, 1, 4, 7, 10), row=(6e4, 6e4))  # overflows fp16
    ditcache.apply(made, plan)
    for _ in range(2):
        for t in grid().half():
            same(first(made(x, t[None], text)), first(model(x, t[None], text)))
    assert ditcache.summary(made).fallbacks["NaN or infinity in a forecast"] >= 2
    assert caplog.text.count("NaN or infinity") == 1


def test_a_model_that_gives_nan_gives_nan():
    model = Denoiser()
    made, _ = planned(model)
    model.out.bias.fill_(torch.nan)
    with counting() as ran:
        assert generate(made).isnan().all()
    assert ran["body"] == 12


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1, 2, 5])
@pytest.mark.parametrize("retry", [True, False])
def test_an_exception_in_mid_generation_leaves_no_trace(at, retry):
    model = Denoiser()
    made, plan = planned(model)
    expected = generate(made, 1)

    def stopped():
        def forward(x, t, i):
            out = first(made(x, t[None], prompt(1)))
            if i == at:
                raise Stop
            return out

        with pytest.raises(Stop):
            euler(forward, noise(1), grid())

    stopped()
    if retry:  # the same seed again: its first calls look like those of the broken one
        ours = generate(made, 1)
        assert (ours - generate(model, 1)).norm() <= 2 * (expected - generate(model, 1)).norm()
    else:
        with counting() as ran:
            generate(made, 2)
        assert ran["body"] == plan.computed_steps
    if not retry:
        same(generate(made, 1), expected)


def test_an_exception_inside_a_step_leaves_no_half_written_state(monkeypatch):
    made, _ = planned(Denoiser())
    expected = generate(made, 1)
    from ditcache.runtime.slots import SlotSet

    push, calls = SlotSet.push, [0]

    def failing(self, *args, **more):
        calls[0] += 1
        if calls[0] == 2:
            raise Stop
        push(self, *args, **more)

    monkeypatch.setattr(SlotSet, "push", failing)
    with pytest.raises(Stop):
        generate(made, 3)
    monkeypatch.setattr(SlotSet, "push", push)
    same(generate(made, 1), expected)


def test_no_memory_for_slots_is_survived(monkeypatch, caplog):
    model = Denoiser()
    made, _ = planned(model)
    from ditcache.runtime.slots import SlotSet

    def failing(self, *args, **more):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(SlotSet, "push", failing)
    same(generate(made, 3), generate(model, 3))
    assert ditcache.summary(made).fallbacks["no memory for slots"] == 12
    assert caplog.text.count("no memory for slots") == 1


def test_outputs_written_to_by_the_caller_do_not_change_forecasts():
    model = Denoiser()
    made, _ = planned(model)
    times, text, x = grid(), prompt(), noise()
    clean = [first(made(x, t[None], text)).clone() for t in times]
    for i, t in enumerate(times):
        out = first(made(x, t[None], text))
        same(out, clean[i])
        out.fill_(1e9)


def test_latents_written_to_in_place_by_the_sampler():
    model = Denoiser()
    made, plan = planned(model)
    expected = generate(made)

    def in_place(called):
        x, times = noise(), grid()
        for i, t in enumerate(times):
            after = times[i + 1] if i + 1 < len(times) else 0.0
            x.add_((after - t) * first(called(x, t[None], prompt())))
        return x

    with counting() as ran:
        same(in_place(made), expected)
    assert ran["body"] == plan.computed_steps
    with torch.inference_mode(), counting() as ran:
        same(in_place(made), expected)
    assert ran["body"] == plan.computed_steps


def test_inference_mode_from_the_first_call_on():
    with torch.inference_mode():
        model = Denoiser()
        made = compiled(model)
        for seed, expected in ((0, 12), (1, 12), (2, 6)):
            with counting() as ran:
                ours = generate(made, seed)
            assert ran["body"] == expected
        reference = generate(model, 2)
        assert (ours - reference).norm() / reference.norm() < 0.05


def test_image_to_image_starts_later_on_the_grid():
    model = Denoiser()
    made, plan = planned(model, computed=(0, 1, 4, 5, 8, 9))
    with counting() as ran:
        ours = generate(made, timesteps=grid()[4:])
    assert ran["body"] == 4
    from .helpers import forecast_by_hand

    by_hand = forecast_by_hand(plan, lambda x, t, _: first(model(x, t[None], prompt())))
    theirs = euler(lambda x, t, i: by_hand(x, t, i + 4), noise(), grid()[4:])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_many_generations_keep_memory_bounded():
    made, _ = planned(Denoiser())
    sizes = set()
    for seed in range(6):
        with ditcache.generation():
            generate(made, seed)
        sizes.add(ditcache.summary(made).slot_bytes)
    assert sizes == {0}, "an explicit generation frees its slots"
    for seed in range(6):
        generate(made, seed)
    assert ditcache.summary(made).slot_bytes == 2 * 6 * 16 * 4


def test_options_given_last_hold_for_the_plan():
    model = Denoiser()
    one = compiled(model, policy="none")
    generate(one)
    two = compiled(model, speedup=3.0)
    for seed in range(3):
        generate(two, seed)
    with counting() as ran:
        generate(two, 4)
    assert ran["body"] == 4
