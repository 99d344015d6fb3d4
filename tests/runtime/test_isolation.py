"""E5: generations, threads and branches do not touch each other."""

from __future__ import annotations

import threading

import ditcache
import torch
from torch import Tensor

from .helpers import (
    Denoiser,
    compiled,
    counting,
    euler,
    first,
    generate,
    grid,
    noise,
    planned,
    prompt,
    same,
)


def test_e5_interleaved_generations_equal_separate_ones():
    """Two pipelines on one compiled model and one thread, one prompt even: never a mixed image."""
    model = Denoiser()
    made, _ = planned(model)
    for prompts in ((0, 0), (0, 1)):
        xs = [noise(s) for s in (1, 2)]
        times = grid()
        for i, t in enumerate(times):
            after = times[i + 1] if i + 1 < len(times) else 0.0
            for k in range(2):
                xs[k] = xs[k] + (after - t) * first(made(xs[k], t[None], prompt(prompts[k])))
        for k in range(2):
            text = prompt(prompts[k])
            same(
                xs[k],
                euler(lambda x, t, _, c=text: first(model(x, t[None], c)), noise(k + 1), times),
            )


def test_e5_interleaved_images_of_one_prompt_that_come_to_look_alike():
    """In the end the latents of both are nearly equal: only that they take turns tells."""
    model = Denoiser()
    made, _ = planned(model, computed=(0, 2, 4, 6, 8, 10), row=(1.0,))
    for i, t in enumerate(grid()):
        for k in range(2):
            x = (1 - i / 12) * noise(k) + i / 12 * noise(5)
            same(first(made(x, t[None], prompt())), first(model(x, t[None], prompt())))
    assert ditcache.summary(made).fallbacks["interleaved generations"] > 0


def test_e5_interleaved_explicit_generations_each_follow_the_plan():
    from contextvars import copy_context

    made, plan = planned(Denoiser())
    separate = [generate(made, seed) for seed in (1, 2)]
    contexts, scopes = [copy_context(), copy_context()], [ditcache.generation() for _ in range(2)]
    for context, scope in zip(contexts, scopes, strict=True):
        context.run(scope.__enter__)
    xs, times = [noise(1), noise(2)], grid()
    with counting() as ran:
        for i, t in enumerate(times):
            after = times[i + 1] if i + 1 < len(times) else 0.0
            for k, context in enumerate(contexts):
                xs[k] = xs[k] + (after - t) * first(
                    context.run(made, xs[k], t[None], prompt(k + 1))
                )
    for context, scope in zip(contexts, scopes, strict=True):
        context.run(scope.__exit__, None, None, None)
    assert ran["body"] == 2 * plan.computed_steps
    same(xs, separate)


def test_e5_threads_equal_separate_runs():
    made, _ = planned(Denoiser())
    separate = [generate(made, seed) for seed in range(4)]
    found: dict[int, Tensor] = {}
    barrier = threading.Barrier(4)

    def run(seed):
        with torch.no_grad():
            barrier.wait()
            for _ in range(3):
                found[seed] = generate(made, seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same([found[i] for i in range(4)], separate)


def test_e5_branches_equal_two_models():
    model = Denoiser()
    made, plan = planned(model)
    alone = {n: [] for n in (0, 1)}
    for n in (0, 1):
        for i, t in enumerate(grid()):
            alone[n].append(first(made(noise() * (1 - i / 50), t[None], prompt(n))))
    for names in (("cond", "uncond"), (None, None)):
        with counting() as ran:
            for i, t in enumerate(grid()):
                for n, name in enumerate(names):
                    x = noise() * (1 - i / 50)
                    if name:
                        with ditcache.branch(name):
                            out = first(made(x, t[None], prompt(n)))
                    else:
                        out = first(made(x, t[None], prompt(n)))
                    same(out, alone[n][i])
        assert ran["body"] == 2 * plan.computed_steps


def test_batched_guidance_is_recorded_and_planned():
    model, both = Denoiser(), torch.cat([prompt(0), prompt(99)])
    made = compiled(model)

    def guided(called, seed):
        def forward(x, t, _):
            a, b = first(called(x.repeat(2, 1, 1), t.expand(2), both)).chunk(2)
            return b + 2 * (a - b)

        return euler(forward, noise(seed), grid())

    for seed, expected in ((0, 12), (1, 12), (2, 6)):
        with counting() as ran:
            ours = guided(made, seed)
        assert ran["body"] == expected
        theirs = guided(model, seed)
        assert (ours - theirs).norm() / theirs.norm() < 0.05
