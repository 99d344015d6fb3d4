"""The whole comparison on a random-weight video model, each method in its own process."""

from __future__ import annotations

import json

import pytest
from ditcache.bench.compare import worker
from ditcache.bench.compare.settings import JOURNAL, Journal, Settings
from ditcache.bench.compare.subjects import Request
from ditcache.bench.compare.worker import Worker
from ditcache.runtime import cli


def compare(out, *more):
    arguments = ["compare", "tiny_pipelines:svd", "--out", str(out), "--count", "2", *more]
    return cli.main(arguments)


@pytest.mark.slow
def test_rows_run_fail_and_are_refused_each_for_itself(tmp_path, child_path, capsys):
    out = tmp_path / "out"
    methods = ("--methods", "M3-10,M4", "--combine", "M1+M5", "--device", "cpu")
    assert compare(out, *methods) == 1
    document = json.loads((out / "compare.json").read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert [rows[n]["status"] for n in ("M0", "M3-10", "M4", "M1+M5")] == [
        "ok", "ok", "failed", "refused",
    ]  # fmt: skip
    assert "needs distilled weights" in rows["M4"]["reason"]
    assert rows["M3-10"]["macs_reduction"] == pytest.approx(2.0, rel=0.01)
    assert rows["M0"]["quality"]["psnr"]["mean"] == 100
    assert rows["M0"]["repeats"] == 3
    assert rows["M0"]["quality"]["samples"] == 2
    assert rows["M0"]["quality"]["image_sim"] is not None
    assert rows["M0"]["peak_bytes"] > 2**20
    assert (out / "frames.png").exists()
    assert len(document["clips"]) == 2
    lines = (out / "work" / JOURNAL).read_text().splitlines()
    assert compare(out, *methods) == 1
    again = (out / "work" / JOURNAL).read_text().splitlines()
    ran = [line for line in lines if '"run"' in line]
    assert [line for line in again if '"run"' in line] == ran
    assert compare(out, *methods, "--only-timing", "--timing-samples", "2") == 1
    timed = json.loads((out / "compare.json").read_text())
    assert timed["rows"][1]["quality"] == rows["M3-10"]["quality"]
    assert timed["clips"] == document["clips"]


def test_caching_runs_counts_and_says_what_it_did(tmp_path):
    settings = Settings(Request("tiny_pipelines:wan", count=1), ("M0", "C2", "exact"), repeats=1)
    settings.save(tmp_path)
    for name in settings.names:
        Worker(tmp_path, name).run()
    journal = Journal(tmp_path / JOURNAL, settings.key())
    assert not journal.of("failed"), journal.of("failed")
    macs = {line["method"]: line["macs"] for line in journal.of("prepared")}
    # At this size the text's projections, hoisted by both, are a good part of the work.
    assert macs["exact"] / macs["C2"] == pytest.approx(2.0, rel=0.1)
    assert macs["exact"] <= macs["M0"]
    facts = {line["method"]: line["facts"] for line in journal.of("finished")}
    assert len(facts["C2"]["plan"]) == 4
    assert facts["C2"]["fallbacks"] == {}
    frames = tmp_path / "frames"
    plain, exact = (next((frames / name).iterdir()).read_bytes() for name in ("M0", "exact"))
    assert plain == exact


def test_weights_that_were_given_and_are_not_there_fail_before_the_model_is_loaded(
    tmp_path, monkeypatch
):
    request = Request("tiny_pipelines:svd", weights={"lcm": str(tmp_path / "absent")})
    settings = Settings(request, ("M0", "M7"))
    settings.save(tmp_path)
    monkeypatch.setattr(worker, "load", lambda _: pytest.fail("the model was loaded"))
    Worker(tmp_path, "M7").run()
    (line,) = Journal(tmp_path / JOURNAL, settings.key()).of("failed")
    assert "M7: " in line["reason"]
    assert "no such file or folder" in line["reason"]


@pytest.mark.slow
def test_a_model_that_cannot_be_used_ends_the_study_at_once(tmp_path, child_path, capsys):
    arguments = ["compare", "tiny_pipelines:svd_pipeline", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--methods", "M1,M3-4", "--combine", ""]) == 2
    assert "--inputs" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "work" / "logs").iterdir()) == ["M0.log"]


def test_bad_input_is_one_line(tmp_path, capsys):
    assert cli.main(["compare", "no-such-model", "--out", str(tmp_path)]) == 2
    assert "expected one of flux-emoji, wan-emoji, svd-emoji" in capsys.readouterr().err
    assert compare(tmp_path, "--methods", "M99") == 2
    assert "unknown method 'M99'" in capsys.readouterr().err
    assert compare(tmp_path, "--weights", "lcm") == 2
    assert "ROLE=PATH" in capsys.readouterr().err
    assert compare(tmp_path, "--inputs", str(tmp_path / "absent")) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert compare(tmp_path, "--work", str(tmp_path / "file" / "work")) == 2
    assert "nothing can be written" in capsys.readouterr().err
    assert compare(tmp_path, "--dtype", "int3") == 2
    assert "--dtype" in capsys.readouterr().err
