"""Overhead and cold starts, on as little as shows that they measure what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from bench import cold, overhead
from bench.workload import FluxEmoji


@pytest.mark.slow
@pytest.mark.parametrize("guards", ["shortcut", "all guards"])
def test_parts_of_a_skipped_step_add_up(guards: str):
    row = overhead.measure(FluxEmoji(), guards, batch=1, steps=8, generations=2, inner="eager")
    assert bool(row["shortcuts"]) == (guards == "shortcut")
    parts = row["skipped_us"]
    assert row["calls"] == 2 * 8 * 2
    assert all(parts[name] > 0 for name in ("guards", "dispatch", "forecast"))
    total = sum(parts[name] for name in ("guards", "dispatch", "forecast"))
    assert parts["whole"] == pytest.approx(total, rel=0.25)
    assert row["share"] == pytest.approx(parts["whole"] / row["computed_us"], rel=1e-3, abs=1e-5)
    assert row["share"] < 1


@pytest.mark.slow
def test_the_cost_of_recording_is_that_of_its_calls(tmp_path):
    row = overhead.recording(
        FluxEmoji(), batch=1, steps=8, generations=2, inner="eager", folder=tmp_path
    )
    assert row["calls"] == 2 * 8 * 2
    assert 0 < row["share"] < 1
    assert row["recording_us"] < row["computed_us"]
    [profile] = tmp_path.iterdir()
    assert row["profile_bytes"] == profile.stat().st_size
    assert row["planning_seconds"] > 0


def test_cold_model_has_the_blocks_asked_for():
    model = cold.build(2, 3)
    assert len(model.transformer_blocks) == 2
    assert len(model.single_transformer_blocks) == 3
    with torch.no_grad():
        assert model(**cold.inputs())[0].shape == (1, 64, 16)


def test_a_failing_way_says_why(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RuntimeError, match="inductor failed"):
        cold.in_own_process("inductor", 1, 1)


def test_the_committed_ratios_of_first_calls_follow_from_the_committed_runs():
    path = Path(__file__).parents[2] / "bench" / "results" / "cold.json"
    document = json.loads(path.read_text())
    ratios = {k: v for k, v in document.items() if k.startswith("inductor_over_ditcache")}
    assert len(ratios) == 2
    assert cold._against_inductor(document["runs"]) == ratios
