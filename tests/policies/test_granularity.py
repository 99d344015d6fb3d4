"""Candidates of equal work, by granularity: what they cost is what runs."""

from __future__ import annotations

import ditcache
import pytest
import torch
from ditcache import PlanError
from ditcache.passes.policies import granularity, make
from ditcache.runtime.session import session_of

from ..runtime.helpers import compiled, counting, noise, prompt
from .models import STEPS, Dit, denoise, subject_of


@pytest.fixture
def made():
    model = compiled(Dit(), policy="none")
    model(noise(), torch.ones(1), prompt())
    return model


def graph_of(made):
    return session_of(made).executors[0].graph


def test_candidates_reach_the_saving_or_are_left_out(made):
    on = subject_of(made)
    few = granularity.candidates(graph_of(made), on, 1.4)
    many = granularity.candidates(graph_of(made), on, 3.0)
    assert {c.part.name for c in few} >= {"denoiser", "all but 1 + 1 blocks", "each block"}
    assert all(1.4 <= c.reduction < 1.65 for c in few), "as little more as whole steps allow"
    assert {c.part.name for c in many} == {"denoiser", "deep part", "each block", "each branch"}
    with pytest.raises(PlanError, match="speedup must be"):
        granularity.candidates(graph_of(made), on, 0.5)
    with pytest.raises(PlanError, match="only known when it runs"):
        granularity.macs_reduction(graph_of(made), make("firstblockcache").plan(on))


def test_the_cost_on_the_graph_is_what_runs(made):
    costed = granularity.candidates(graph_of(made), subject_of(made), 1.4)
    partial = next(c for c in costed if c.part.name == "all but 1 + 1 blocks")
    ditcache.apply(made, partial.plan)
    with counting() as ran:
        denoise(made)
    n, d, text = 6, 16, 5  # tokens, width, length of the prompt; batch 1
    attention = 4 * n * d * d + 2 * n * n * d
    cross = 2 * n * d * d + 2 * n * text * d  # keys and values are hoisted
    block = attention + cross + 2 * n * d * 2 * d
    ends = 2 * n * d * d  # projections before and after the blocks
    uncached = STEPS * (4 * block + ends)
    assert ran["mlp"] < STEPS * 4
    assert partial.reduction == pytest.approx(uncached / (ran["mlp"] * block + STEPS * ends))
