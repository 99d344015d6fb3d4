"""Replays that cannot be laid beside the uncached generations are told, not compared."""

from __future__ import annotations

import torch
from ditcache.runtime.profiling import courses, make_profile
from ditcache.runtime.recorder import Recording
from ditcache.runtime.track import Moment

STEPS = 6


def recorded(steps: int, seed: int = 0) -> Recording:
    """An Euler flow over the first `steps` of six, as a session records it."""
    x = torch.randn(2, 30, generator=torch.Generator().manual_seed(seed))
    made = Recording(width=16)
    for step in range(steps):
        y = torch.tanh(x) + 0.1 * step
        moment = Moment(track="here", serial=0, branch="", step=step, timestep=1 - step / STEPS)
        made.add(moment, x, {"denoiser": y})
        x = x - y / STEPS
    return made


def test_replays_of_whole_generations_are_courses():
    profile = make_profile([recorded(STEPS), recorded(STEPS, 1)], "model")
    found = courses([recorded(STEPS), recorded(STEPS, 1)], profile)
    assert found is not None
    assert found.x.shape == (2, STEPS, 32)
    assert found.rows == 2


def test_a_generation_that_fell_apart_is_none():
    """As of a plan so bad that its latents no longer look like those of one generation."""
    profile = make_profile([recorded(STEPS), recorded(STEPS, 1)], "model")
    assert courses([recorded(STEPS), recorded(4)], profile) is None
    assert courses([recorded(4), recorded(2)], profile) is None
    assert courses([], profile) is None


def test_a_region_met_before_the_denoiser_is_kept_apart_by_sample_from_the_first_step_on():
    made = Recording(width=16)
    for step in range(STEPS):
        y = torch.ones(2, 30)
        moment = Moment(track="here", serial=0, branch="", step=step, timestep=1 - step / STEPS)
        made.add(moment, y, {"blocks.7": y, "denoiser": y})
    table = made.table("blocks.7")
    assert table is not None
    assert table.shape == (1, STEPS, 2 * 16)
