"""Other libraries, unmodified: each really skips, as often as it should, and leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("cache_dit")
pytest.importorskip("DeepCache")

from bench.arena import Arena, Setting
from bench.contest import Contest, cell_name, make
from bench.contestants import DoesNotApply, Family
from bench.ledger import Ledger
from bench.macs import counted
from bench.peers import PEERS
from bench.peers import sea_cache as sea_cache_peer
from bench.peers.cache_dit import _masks
from bench.tuning import Tuned, Tuner

STEPS = 10
CALLS = 2 * STEPS

# Knobs, and how many of the twenty calls (two branches) they skip; None where data decide.
SKIPS = {
    "diffusers-fbcache": ({"threshold": 10.0}, CALLS - 2),
    "diffusers-taylorseer": (
        {"cache_interval": 3, "disable_cache_before_step": 1, "max_order": 1, "lite": True},
        2 * 6,  # computed: 0, 2, 5, 8
    ),
    "diffusers-magcache": (
        {"max_skip_steps": 1, "retention_ratio": 0.0, "threshold": 100.0},
        2 * 5,  # every other step
    ),
    "diffusers-seacache": (
        {"residual_order": 0, "max_consecutive_cached": 1, "threshold": 1e6},
        2 * 4,  # every other step; the first and the last compute
    ),
    "diffusers-pab": (
        {
            "spatial_attention_block_skip_range": 2,
            "spatial_attention_timestep_skip_range": (-1, 1001),
        },
        None,
    ),
    "diffusers-fastercache": (
        {
            "spatial_attention_block_skip_range": 2,
            "spatial_attention_timestep_skip_range": (-1, 999),
            "weight": 0.5,
        },
        None,
    ),
    "cache-dit-dbcache": (
        {
            "Fn_compute_blocks": 1,
            "Bn_compute_blocks": 0,
            "order": 0,
            "steps_computation_mask": [1, 1, 0, 0, 1, 0, 0, 1, 0, 1],
        },
        2 * 5,
    ),
    "cache-dit-taylorseer": (
        {
            "Fn_compute_blocks": 1,
            "Bn_compute_blocks": 0,
            "order": 1,
            "max_warmup_steps": 2,
            "residual_diff_threshold": 10.0,
        },
        2 * 8,
    ),
}


@pytest.fixture(scope="module")
def arena(tmp_path_factory, tiny_flux):
    setting = Setting(tiny_flux, samples=2, batch=1, calibration=1, steps=STEPS)
    return Arena(setting, tmp_path_factory.mktemp("arena"))


@pytest.mark.parametrize("name", list(SKIPS))
def test_peer_skips_as_often_as_it_should(arena, name):
    knobs, skipped = SKIPS[name]
    peer = PEERS[name](name, arena)
    peer.prepare()
    batch = arena.calibration[0]
    expected = arena.uncached("calibration", arena.calibration)
    got, macs = counted(lambda: peer.sample(knobs, batch))
    about = peer.about(knobs)
    assert about["calls"] == CALLS
    if skipped is not None:
        assert about["skipped_calls"] == skipped
    assert macs < 0.98 * arena.macs_uncached
    assert got.isfinite().all()
    assert not torch.equal(got, expected)
    # The library is off again: same bits, same work.
    again, whole = counted(lambda: arena.workload.sample(arena.workload.denoiser, batch, STEPS))
    assert torch.equal(again, expected)
    assert whole == arena.macs_uncached


def test_magcache_is_calibrated_by_its_own_routine(arena):
    peer = PEERS["diffusers-magcache"]("diffusers-magcache", arena)
    peer.prepare()
    assert len(peer.ratios) == STEPS
    assert peer.ratios[0] == 1.0
    assert len(set(peer.ratios)) > 2


def test_a_cache_that_is_silently_off_is_told(arena, tmp_path, monkeypatch):
    """SeaCache computes everything, without a word, when it is not told the steps."""
    monkeypatch.setattr(sea_cache_peer, "_tell_steps", lambda *_: None)
    contest = Contest(arena, tmp_path)
    contest.run(["diffusers-seacache"], [2.0])
    cell = contest.cells[cell_name("diffusers-seacache", 2.0)]
    assert cell["does_not_apply"].startswith("runs, but skips nothing: 1.000x")


@pytest.mark.parametrize(
    ("name", "knobs", "said"),
    [
        ("diffusers-fbcache", {"threshold": 0.1}, "No cache context is set"),
        ("deepcache-helper", {"cache_interval": 2}, "hooks a UNet's"),
    ],
)
def test_a_library_that_refuses_is_quoted(name, knobs, said):
    peer = PEERS[name](name, _digits())
    with pytest.raises(DoesNotApply, match=said):
        peer.sample(knobs, peer.arena.calibration[0])


def test_deepcache_is_a_library_and_a_policy_on_a_unet(tmp_path):
    steps = 4
    arena = Arena(Setting("svd-emoji", samples=1, batch=1, calibration=1, steps=steps), tmp_path)
    batch = arena.calibration[0]
    expected = arena.uncached("calibration", arena.calibration)
    helper = PEERS["deepcache-helper"]("deepcache-helper", arena)
    knobs = {"cache_branch_id": 0, "skip_mode": "uniform", "cache_interval": 2}
    theirs, macs = counted(lambda: helper.sample(knobs, batch))
    assert helper.about(knobs) == {"calls": steps, "skipped_calls": steps // 2}
    assert macs < 0.8 * arena.macs_uncached
    assert torch.equal(arena.workload.sample(arena.workload.denoiser, batch, steps), expected)
    policy = make("deepcache", arena)
    policy.prepare()
    knobs = {"interval": 2}
    ours, macs = counted(lambda: policy.sample(knobs, batch))
    about = policy.about(knobs)
    assert (about["calls"], about["skipped_calls"]) == (steps, steps // 2)
    assert macs < 0.8 * arena.macs_uncached
    # Other cuts, so other numbers; both near the uncached clip, and neither the same.
    for got in (theirs, ours):
        assert 0 < (got - expected).norm() / expected.norm() < 0.5


def test_settings_that_fail_are_listed_and_the_others_count(arena, tmp_path):
    """A family of settings that a library breaks on does not take it out of the contest."""

    class Half(PEERS["diffusers-taylorseer"]):
        def families(self, budget):
            found = super().families(budget)
            return [Family(found[0].fixed | {"cache_interval": -1}), found[0]]

        def enable(self, model, knobs):
            if knobs["cache_interval"] < 0:
                raise ValueError("interval below one")
            super().enable(model, knobs)

    peer = Half("half", arena)
    tuned = Tuner(arena, Ledger(tmp_path / "t", arena.key), lambda _: None).tune(peer, 2.0)
    assert tuned.knobs["cache_interval"] > 0
    assert [f.error for f in tuned.failures] == ["ValueError: interval below one"]
    assert Tuned.from_record(tuned.record()) == tuned


def _digits():
    return Arena(Setting("dit-digits", samples=1, batch=1, calibration=1, steps=3), Path())


@pytest.mark.parametrize("warm", [2, 4])
def test_cache_dits_masks_go_down_to_one_step_after_the_start(warm):
    masks = _masks(50, 5, warm)
    assert [sum(mask) for mask in masks] == list(range(10, warm, -1))
    assert all(mask[:warm] == [1] * warm and mask[-1] for mask in masks)
