"""`ditcache bench`: tuning, statistics, and going on after a kill."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ditcache.runtime import cli

from bench import exact, judging, pareto, standing, workload
from bench.arena import Arena, Setting, load_workload
from bench.contest import OTHER_SEEDS, UNCACHED, Contest
from bench.contestants import Contestant, Family
from bench.judging import PERCEPTUAL, PSNR, TO_REAL
from bench.ledger import Ledger
from bench.tuning import Tuner
from bench.workload import CALIBRATION_SEED


@pytest.fixture
def arena(tmp_path, tiny_flux):
    return Arena(Setting(tiny_flux, samples=3, batch=1, calibration=2, steps=8), tmp_path)


class Dial(Contestant):
    """Spends 1 / power of the work and errs accordingly; `limit` is all it can save."""

    kind = "library"

    def __init__(self, arena, limit=100.0):
        super().__init__("dial", arena)
        self.limit = limit
        self.runs = 0
        self.latents = arena.uncached("calibration", arena.calibration)

    def families(self, budget):
        return [
            Family({"noise": 3.0}, "power", span=(1.0, 64.0)),
            Family({"noise": 1.0}, "power", values=[1.0, 2.0, 2.9, 3.0, 4.0, 8.0]),
        ]

    def sample(self, knobs, batch):
        self.runs += 1
        arena = self.arena
        latents = self.latents[: len(batch.seeds)]
        saved = min(knobs["power"], self.limit)
        rows = int(arena.macs_uncached * len(batch.seeds) / saved)
        torch.ones(rows, 1) @ torch.ones(1, 1)
        return latents + 0.01 * knobs["noise"] * saved


def test_tuning_takes_the_best_setting_within_the_budget(arena, tmp_path):
    arena.__dict__["macs_uncached"] = 1000.0
    dial = Dial(arena)
    ledger = Ledger(tmp_path / "trials.jsonl", arena.key)
    tuned = Tuner(arena, ledger, lambda _: None).tune(dial, 3.0)
    assert tuned.reached
    assert tuned.knobs == {"noise": 1.0, "power": 3.0}
    wide = next(t for t in tuned.trials if t.knobs["noise"] == 3.0)
    assert 0.98 * 3 <= wide.reduction <= 1.05 * 3
    # A later run reads its trials from the disk.
    runs = dial.runs
    again = Tuner(arena, Ledger(ledger.path, arena.key), lambda _: None).tune(dial, 3.0)
    assert again == tuned
    assert dial.runs == runs


def test_other_seeds_are_judged_with_the_same_tuning(tiny_flux, tmp_path):
    setting = Setting(tiny_flux, samples=3, batch=1, calibration=2, steps=8)
    first, other = Arena(setting, tmp_path), Arena(replace(setting, seed=50), tmp_path)
    assert [b.seeds for b in other.held_out] == [(50,), (51,), (52,)]
    assert [b.conditions for b in other.held_out] == [b.conditions for b in first.held_out]
    assert other.calibration == first.calibration
    assert other.tuning_key == first.tuning_key
    assert other.key != first.key
    with pytest.raises(ValueError, match="share noise with those that plans are made on"):
        Arena(replace(setting, seed=CALIBRATION_SEED), tmp_path)


def test_tuning_says_when_a_budget_is_out_of_reach(arena, tmp_path):
    arena.__dict__["macs_uncached"] = 1000.0
    ledger = Ledger(tmp_path / "trials.jsonl", arena.key)
    tuned = Tuner(arena, ledger, lambda _: None).tune(Dial(arena, limit=1.5), 3.0)
    assert not tuned.reached
    assert max(t.reduction for t in tuned.trials) == pytest.approx(1.5, rel=0.01)


def test_a_half_written_line_is_ignored(tmp_path):
    path = tmp_path / "cells.jsonl"
    first = Ledger(path, "k")
    first.put("a", {"x": 1})
    first.put("b", {"x": 2})
    Ledger(path, "other").put("a", {"x": 9})
    path.write_text(path.read_text() + '{"key": "k", "name": "c", "x')
    again = Ledger(path, "k")
    assert {n: again[n]["x"] for n in again.records} == {"a": 1, "b": 2}
    again.put("c", {"x": 3})
    again.put("a", {"x": 4})
    assert {n: r["x"] for n, r in Ledger(path, "k").records.items()} == {"a": 4, "b": 2, "c": 3}


def test_contest_goes_on_where_it_was_killed(arena, tmp_path, monkeypatch):
    seen = []
    contest = Contest(arena, tmp_path)
    measure = contest._measure

    def killed(contestant, *rest):
        seen.append(contestant.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measure(contestant, *rest)

    monkeypatch.setattr(contest, "_measure", killed)
    wanted = ["edf-tuned", "reuse", "fewer-steps"]
    with pytest.raises(KeyboardInterrupt):
        contest.run(wanted, [2.0])
    assert set(contest.cells.records) == {UNCACHED, "edf-tuned 2x", "reuse 2x"}

    again = Contest(arena, tmp_path)
    ran = []
    again_measure = again._measure
    monkeypatch.setattr(
        again, "_measure", lambda c, *rest: ran.append(c.name) or again_measure(c, *rest)
    )
    again.run(wanted, [2.0])
    assert ran == ["fewer-steps"]
    for name in ("edf-tuned 2x", "reuse 2x"):
        assert again.cells[name]["macs_reduction"] == pytest.approx(2.0, rel=0.05)
        assert again.cells[name]["about"]["skipped_calls"] == 8
    again.run(["edf-tuned"], [2.0], redo=True)
    assert ran == ["fewer-steps", "edf-tuned"]

    assert OTHER_SEEDS in again.cells
    made = standing.document(again, wanted, [2.0])
    json.dumps(made)
    psnr = [r for r in made["against"] if r["metric"] == "psnr"]
    assert [r["kind"] for r in psnr] == ["baseline"]
    assert {p.suffix for p in pareto.save(made, tmp_path)} >= {".png"}


def cell(name, kind, psnr, frechet):
    each = {"psnr": psnr, PERCEPTUAL.key: [-p for p in psnr]}
    return {
        "contestant": name,
        "kind": kind,
        "budget": 3.0,
        "macs_reduction": 3.0,
        "each": each,
        "set": {TO_REAL.key: frechet},
    }


def test_where_ours_is_behind_it_says_so():
    rng = np.random.default_rng(0)
    base = 40 + 5 * rng.standard_normal(256)
    mine = cell("edf", "ditcache", base.tolist(), 100.0)
    better = cell("x", "library", (base + 0.5 + rng.standard_normal(256)).tolist(), 99.0)
    worse = cell("y", "library", (base - 3).tolist(), 90.0) | {"macs_reduction": 2.0}
    rows = standing.standings([mine, better, worse], 3.0, noise=2.0)
    found = {r["metric"]: r for r in rows}
    assert found["psnr"]["verdict"] == "behind"
    assert found["psnr"]["other"] == "x"
    assert found["psnr"]["difference"] == pytest.approx(-0.5, abs=0.2)
    assert found["psnr"]["low"] < found["psnr"]["difference"] < found["psnr"]["high"] < 0
    assert found[PERCEPTUAL.key]["verdict"] == "behind"
    # Ninety would be best, but it spent half as much again; one apart is within the noise.
    assert found[TO_REAL.key]["verdict"] == "level"
    assert judging.compare(better, mine, PSNR, 0).verdict == "ahead"


def test_perceptual_distance_sees_more_than_nothing(tiny_flux):
    flux = load_workload(tiny_flux)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = [flux.look(x)[1] for x in (images, images, (images + 0.1).clamp(0, 1), images.flip(3))]
    distances = [float((maps[0] - m).square().sum(1).mean()) for m in maps[1:]]
    assert distances[0] == 0
    assert 0 < distances[1] < distances[2] < 4


def test_clips_are_judged_as_sheets_of_their_frames():
    wan = load_workload("wan-emoji")
    batch = wan.batches(1, 1, seed=0)[0]
    latents = wan.sample(wan.denoiser, batch, 2)
    sheet, clip = wan.pictures(latents), wan.clips(latents)
    assert sheet.shape == (1, 3, 96, 96)
    torch.testing.assert_close(sheet[0, :, 32:64, 64:96], clip[0, 5])
    assert wan.position()[0] == 2


def test_exact_tier_keeps_every_bit():
    digits = workload.DitDigits()
    found = exact.measure(digits, digits.batches(2, 2, seed=0), steps=3, inner="eager")
    assert found["bit_identical"]
    assert found["weight_bytes_removed"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-model"], "expected one of"),
        (["dit-digits", "--budgets", "1,3"], "above 1"),
        (["dit-digits", "--peers", "nobody"], "no nobody"),
        (["dit-digits", "--samples", "0"], "at least 1"),
    ],
)
def test_bad_input_is_one_line(arguments, said, capsys, tmp_path):
    assert cli.main(["bench", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_measures_resumes_and_reports(tmp_path, tiny_flux, capsys):
    arguments = ["bench", tiny_flux, "--budgets", "2", "--quick", "--out", str(tmp_path)]
    arguments += ["--policies", "edf,fewer-steps-ab2", "--peers", "diffusers-fbcache"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "edf" in said
    folder = tmp_path / tiny_flux.replace(":", ".")
    made = json.loads((folder / "result.json").read_text())
    assert [c["name"] for c in made["cells"]] == [
        "edf 2x",
        "fewer-steps-ab2 2x",
        "diffusers-fbcache 2x",
    ]
    assert made["cells"][0]["over_samples"]["psnr"]["p5"] > 10
    lines = (folder / "cells.jsonl").read_text().count("\n")
    assert cli.main(arguments) == 0
    assert (folder / "cells.jsonl").read_text().count("\n") == lines
    assert cli.main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    psnr = made["cells"][0]["over_samples"]["psnr"]["mean"]
    assert f"<td>{psnr:.4f}<small>" in page
    assert "<title>fewer-steps-ab2: MACs reduction" in page


def test_factory_must_exist():
    for name in ("no.such.module:x", "json:nothing"):
        with pytest.raises(ValueError, match="no"):
            load_workload(name)
    assert isinstance(load_workload("dit-digits"), workload.DitDigits)
