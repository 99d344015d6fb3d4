"""From lines to rows, ratios, the matrix of combinations and the recommendations."""

from __future__ import annotations

import pytest
from ditcache.bench.compare.recommend import recommend, undominated
from ditcache.bench.compare.rows import Times, make_rows, matrix
from ditcache.bench.compare.settings import Journal, Settings
from ditcache.bench.compare.subjects import Request

NAMES = ("M0", "M1", "M3-10", "M5", "C3", "C3+M1", "M4")


def line(journal, name, seconds, macs, *, peak=100, quality_only=None):
    journal.add(
        event="prepared", method=name, macs=macs, post_macs=0.0, weight_bytes=1, steps=25,
        notes=[], seconds={}, quality_only=quality_only, samples=2,
    )  # fmt: skip
    for sample, repeat in ((0, 0), (0, 1), (0, 2), (1, 0)):
        journal.add(
            event="run", method=name, sample=sample, repeat=repeat, frames=5, finite=True,
            seconds=seconds * (1 + 0.1 * (repeat == 2)), decode_seconds=0.0, post_seconds=0.0,
            cpu_seconds=seconds, peak_bytes=peak, reserved_bytes=None, temperature=None, watts=None,
        )  # fmt: skip


def judged(journal, name, ssim, distance, said=""):
    for sample in (0, 1):
        journal.add(
            event="judged", method=name, sample=sample, psnr=30.0, ssim=ssim, distance=distance,
            image_sim=0.9, temporal_ssim=0.9, temporal_distance=0.1, motion=0.1, collapsed=said,
        )  # fmt: skip


@pytest.fixture
def rows(tmp_path):
    settings = Settings(Request("m"), NAMES)
    journal, quality = Journal(tmp_path / "a", "k"), Journal(tmp_path / "b", "k")
    for name, seconds, peak, ssim, distance in (
        ("M0", 8.0, 100, 1.0, 0.0),
        ("M1", 4.0, 60, 0.99, 0.01),
        ("M3-10", 2.0, 100, 0.80, 0.20),
        ("C3", 2.0, 110, 0.97, 0.02),
        ("C3+M1", 1.0, 70, 0.96, 0.03),
    ):
        line(journal, name, seconds, 1e9 * seconds, peak=peak)
        judged(quality, name, ssim, distance)
    line(journal, "M5", 8.0, 8e9, quality_only="masks only")
    judged(quality, "M5", 0.1, 3.0, "black")
    journal.add(event="failed", method="M4", reason="no weights")
    found = make_rows(settings, Journal(tmp_path / "a", "k"), Journal(tmp_path / "b", "k"))
    return {row["name"]: row for row in found}


def test_times_are_medians_with_their_spread_and_ratios_to_the_baseline(rows):
    row = rows["M1"]
    assert row["seconds"] == 4.0
    assert row["seconds_spread"] == pytest.approx(0.05)
    assert row["seconds_per_frame"] == pytest.approx(0.8)
    assert row["frames_per_second"] == pytest.approx(1.25)
    assert row["speedup"]["median"] == pytest.approx(2.0)
    assert row["macs_reduction"] == pytest.approx(2.0)
    assert row["peak_over_baseline"] == -40


def test_the_interval_of_one_timed_input_is_the_range_of_its_repeats():
    base, mine = Times({0: [8.0, 8.8, 8.0]}), Times({0: [4.0, 4.0, 4.4]})
    found = mine.speedup(base)
    assert found.median == 2.0
    assert (found.low, found.high) == (pytest.approx(8 / 4.4), pytest.approx(2.2))


def test_rows_that_could_not_run_say_why_and_quality_only_rows_have_no_times(rows):
    assert (rows["M4"]["status"], rows["M4"]["reason"]) == ("failed", "no weights")
    assert rows["M5"]["quality_only"]
    assert "seconds" not in rows["M5"]
    assert rows["M5"]["quality"]["collapsed"] == {"black": 2}


def test_the_matrix_says_whether_gains_multiply(rows):
    (entry,) = matrix(list(rows.values()))
    assert entry["speedup"] == pytest.approx(8.0)
    assert entry["speedup_product"] == pytest.approx(8.0)
    assert entry["speedup_over_product"] == pytest.approx(1.0)


def test_recommendations_follow_their_rules(rows):
    by_goal = {one.goal: one for one in recommend(list(rows.values()))}
    assert by_goal["lowest latency"].name == "C3+M1"
    assert by_goal["balanced"].name == "C3+M1"
    assert by_goal["low memory"].name == "M1"
    assert "SSIM" in by_goal["balanced"].rule
    larger = {one.goal: one.name for one in recommend([rows["M0"], rows["C3"]])}
    assert larger == {"lowest latency": "C3", "balanced": "C3", "low memory": None}
    alone = recommend([rows["M0"], rows["M5"]])
    assert all(one.name is None for one in alone)


def test_a_combination_is_held_against_every_single_method_as_good(rows):
    (entry,) = undominated(list(rows.values()))
    assert entry["undominated"]
    assert entry["fastest_as_good"] == "C3"
    assert entry["beats"] == ["M3-10"]


def test_a_journal_survives_half_a_line_and_keeps_keys_apart(tmp_path):
    path = tmp_path / "runs.jsonl"
    Journal(path, "a").add(event="run", method="M0")
    Journal(path, "b").add(event="run", method="M1")
    with path.open("a") as file:
        file.write('{"key": "a", "event": "ru')
    journal = Journal(path, "a")
    assert [x["method"] for x in journal.of("run")] == ["M0"]
    journal.drop(lambda _: False)
    assert journal.lines == []
    assert len(Journal(path, "b").lines) == 1
