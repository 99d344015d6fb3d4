"""What `bench.ablate` changes in a plan: its forecaster by name, the answers it is solved for."""

from __future__ import annotations

import pytest
from ditcache.passes.accounts import ANSWERS
from ditcache.passes.forecasters import EDF

pytest.importorskip("diffusers")

from ditcache.bench.ablate import answered, forecaster_of


@pytest.mark.parametrize("forecaster", [EDF(2, 0.15), EDF(4, 0.6, 1e-6), EDF(3, 0.0, 0.01)])
def test_forecaster_is_read_back_from_its_name(forecaster):
    assert forecaster_of(forecaster.name) == forecaster


@pytest.mark.parametrize("name", ["lagrange-2", "refit(k=3)", "edf(k=3,beta=0.3)"])
def test_other_forecasters_stand_for_the_middle_one(name):
    assert forecaster_of(name) == EDF(3, 0.45)


def test_answers_are_those_asked_for_and_only_inside(synthetic):
    profile = synthetic.profile(20)
    usual = profile.plan(4.0)
    assert answered(profile, 4.0, ANSWERS).regions == usual.regions
    without, strong = answered(profile, 4.0, (0.0,)), answered(profile, 4.0, (0.0, 20.0, 40.0))
    assert without.regions != strong.regions
    # Without an answer the expected error is the open loop's, whatever the plan is.
    assert without.expected_error != usual.expected_error
    assert profile.plan(4.0) == usual
