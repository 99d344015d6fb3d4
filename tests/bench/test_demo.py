"""The demo's parts, and the whole of it on a few steps."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from PIL import Image
from rich.console import Console

from bench import demo, environment
from bench.demo_report import check
from bench.timing import Wall, interleaved
from bench.workload import CALIBRATION_SEED, EVALUATION_SEED, SECOND_SEED, DitDigits, FluxEmoji


def test_speedup_is_taken_within_rounds():
    slow, fast = Wall((2.0, 8.0, 4.0)), Wall((1.0, 2.0, 1.0))
    assert fast.speedup(slow) == 4.0
    assert fast.speedup_range(slow) == (2.0, 4.0)
    assert slow.median == 4.0


def test_variants_take_turns():
    seen: list[str] = []
    walls = interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, rounds=3)
    assert "".join(seen) == "abbaabba"
    assert all(len(wall.seconds) == 3 for wall in walls.values())


def test_environment_names_everything_and_no_place(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--n", "4", "--out", "/somewhere", "--work=/else"])
    found = environment.environment("bench.exact")
    assert found["command"] == "python -m bench.exact --n 4"
    assert found["hardware"]["threads"] == torch.get_num_threads()
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unknown", found["commit"])
    json.dumps(found)


def test_schema_names_the_place_of_a_fault():
    schema = {"rows": [{"name": str, "wall": float}]}
    check({"rows": [{"name": "a", "wall": 1}]}, schema)
    with pytest.raises(ValueError, match=r"summary.rows\[0\].wall: expected float"):
        check({"rows": [{"name": "a", "wall": "1"}]}, schema)
    with pytest.raises(ValueError, match=r"rows\[0\].wall is missing"):
        check({"rows": [{"name": "a"}]}, schema)
    with pytest.raises(ValueError, match="items"):
        check({"rows": []}, schema)


def test_evaluation_shares_nothing_with_calibration():
    flux = FluxEmoji()
    made = flux.batches(32, 8, seed=CALIBRATION_SEED, calibration=True)
    judged = flux.batches(130, 8, seed=EVALUATION_SEED) + flux.batches(130, 8, seed=SECOND_SEED)
    assert {len(b.seeds) for b in judged} == {8}
    assert not {c for b in made for c in b.conditions} & {c for b in judged for c in b.conditions}
    assert not {s for b in made for s in b.seeds} & {s for b in judged for s in b.seeds}
    seeds = [s for b in judged for s in b.seeds]
    assert len(seeds) == len(set(seeds))


def test_samples_do_not_depend_on_their_batch():
    flux = FluxEmoji()
    whole = flux.batches(2, 2, seed=5)[0]
    single = flux.batches(2, 1, seed=5)
    together = flux.sample(flux.denoiser, whole, 2)
    alone = torch.cat([flux.sample(flux.denoiser, b, 2) for b in single])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    pictures = flux.pictures(together)
    assert pictures.shape == (2, 3, 64, 64)
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_digits_sample_and_embed_like_any_workload():
    digits = DitDigits()
    batch = digits.batches(3, 3, seed=1)[0]
    pictures = digits.pictures(digits.sample(digits.denoiser, batch, 2))
    assert pictures.shape == (3, 3, 8, 8)
    assert digits.embed(pictures).shape == (3, digits.real().features.shape[1])


@pytest.mark.slow
def test_demo_from_end_to_end(tmp_path):
    summary = demo.run(demo.QUICK, tmp_path, Console(width=150, quiet=True))
    check(summary)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["uncached", "2x"]
    uncached, cached = written["rows"]
    assert uncached["speedup"] == uncached["macs_reduction"] == 1.0
    assert cached["computed_steps"] == 4
    assert cached["macs_reduction"] == pytest.approx(2.0, rel=0.05)
    assert cached["psnr"] > 15
    assert Image.open(tmp_path / "grid.png").width > Image.open(tmp_path / "grid.png").height / 2
    assert (tmp_path / "stability.png").stat().st_size > 10_000
