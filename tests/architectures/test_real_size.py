"""The table of real models: the committed figures are those that ditcache-opt gives."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.real_size import MODELS, Row, measure

TABLE = Path(__file__).resolve().parents[2] / "bench" / "results" / "real-size.json"
RUN = {"cpu_seconds", "peak_bytes"}  # what depends on the machine


def rows() -> dict[str, Row]:
    return {row["name"]: Row(**row) for row in json.loads(TABLE.read_text())["rows"]}


def test_every_model_is_in_the_table_and_was_cheap_enough():
    assert list(rows()) == MODELS
    for row in rows().values():
        assert row.peak_bytes < 6e9
        assert row.cpu_seconds < 120
        assert 1.9 < row.reduction < 2.5
        assert row.slot_bytes > 0


@pytest.mark.slow
def test_the_smallest_model_still_gives_the_committed_row():
    ours, theirs = asdict(measure("dit-xl-2")), asdict(rows()["dit-xl-2"])
    assert {k: v for k, v in ours.items() if k not in RUN} == {
        k: v for k, v in theirs.items() if k not in RUN
    }
