"""Candidates of equal work, by granularity: what they cost is what runs."""

from __future__ import annotations

import ditcache
import pytest
import torch
from ditcache import PlanError
from ditcache.passes.policies import granularity, make
from ditcache.runtime.session import session_of
from torch.utils.flop_counter import FlopCounterMode

from ..runtime.helpers import compiled, noise, prompt
from .models import Dit, denoise, subject_of


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
    assert {c.policy.name for c in few} >= {"taylorseer", "partial"}
    assert all(c.reduction >= 1.4 for c in few)
    assert [c.policy.name for c in many] == ["taylorseer"]
    with pytest.raises(PlanError, match="speedup must be"):
        granularity.candidates(graph_of(made), on, 0.5)
    with pytest.raises(PlanError, match="only known when it runs"):
        granularity.macs_reduction(graph_of(made), make("firstblockcache").plan(on))


def test_the_cost_on_the_graph_is_what_runs(made):
    costed = granularity.candidates(graph_of(made), subject_of(made), 1.4)
    partial = next(c for c in costed if c.policy.name == "partial")

    def flops():
        denoise(made)  # hoisted work, which is not counted, has run
        with FlopCounterMode(display=False) as counter:
            denoise(made)
        return counter.get_total_flops()

    uncached = flops()
    ditcache.apply(made, partial.plan)
    hoisted = 0.1  # modulation and text products are outside the latent work
    assert uncached / flops() == pytest.approx(partial.reduction, rel=hoisted)
