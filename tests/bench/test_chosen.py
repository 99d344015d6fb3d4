"""`ditcache bench` on settings that are known: judged on other noise, timed, and stopped early."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from bench import judging, standing, walls
from bench.arena import Arena, Setting
from bench.chosen import read_chosen
from bench.contest import Contest, Race
from bench.judging import PSNR, TO_REAL
from bench.ledger import Ledger
from bench.walls import Walls


def test_settings_of_a_document_are_taken_and_timed_without_tuning(tiny_flux, tmp_path):
    """What a committed document says is enough: no state of the run that chose it."""
    setting = Setting(tiny_flux, samples=2, batch=1, calibration=1, steps=8)
    knobs = {"cache_interval": 3, "disable_cache_before_step": 1, "max_order": 1, "lite": True}
    trial = {"macs_reduction": 2.0, "psnr": 30.0}
    cells = [
        {
            "contestant": name,
            "budget": 2.0,
            "kind": kind,
            "knobs": chosen,
            "reached": True,
            "trials": [trial | {"knobs": chosen}] * (kind == "library"),
            "macs_reduction": 2.0,
            "about": {"calls": 16, "skipped_calls": 8},
        }
        for name, kind, chosen in (
            ("edf", "ditcache", {"speedup": 2.0}),
            ("diffusers-taylorseer", "library", knobs),
        )
    ]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"setting": asdict(setting), "cells": cells}))
    arena = Arena(setting, tmp_path)
    contest = Contest(arena, tmp_path, chosen=read_chosen(path, setting))

    timed = Ledger(tmp_path / "walls.jsonl", arena.key)
    Walls(contest, timed, rounds=1, inner="eager").run(["edf", "diffusers-taylorseer"], [2.0])
    record = timed["2x"]
    assert not record["failed"]
    assert set(record["walls"]) == {
        "uncached eager",
        "uncached ditcache",
        "edf eager",
        "diffusers-taylorseer eager",
        "diffusers-taylorseer eager blocks",
    }
    assert [cell["computed_steps"] for cell in record["cells"]] == [4, 4]
    assert walls.best_walls(record)["edf"]["speedup"] == record["walls"]["edf eager"]["speedup"]
    assert walls.table(record).row_count == 5
    with pytest.raises(ValueError, match="no cell to time"):
        Walls(contest, timed, rounds=1).run(["edf"], [4.0])

    contest.run(["diffusers-taylorseer"], [2.0])
    assert not contest.trials.records
    assert contest.cells["diffusers-taylorseer 2x"]["knobs"] == knobs
    with pytest.raises(ValueError, match="was measured with steps 8, not 9"):
        read_chosen(path, replace(setting, steps=9))


def test_who_is_far_behind_stops_early(tiny_flux, tmp_path):
    arena = Arena(Setting(tiny_flux, samples=6, batch=2, calibration=1, steps=8), tmp_path)
    contest = Contest(arena, tmp_path, race=Race(behind=3.0, after=3))
    contest.run(["edf", "reuse"], [2.0])
    first, second = (contest.cells[f"{name} 2x"] for name in ("edf", "reuse"))
    assert (first["samples"], second["samples"]) == (6, 4)
    assert TO_REAL.key in first["set"]
    assert not second["set"]
    against = judging.compare(first, second, PSNR, 0)
    paired = np.subtract(first["each"]["psnr"][:4], second["each"]["psnr"])
    assert against.difference == pytest.approx(paired.mean())
    assert against.difference > 3
    assert standing.table(contest, ["edf", "reuse"], [2.0]).row_count == 5
