"""VBench through a package of its name, signatures and files (`fake_vbench`)."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from ditcache.bench.bad_input import BadInput
from ditcache.bench.evaluate import vbench_run, vbench_scores
from ditcache.bench.evaluate.prompts import load_prompts
from ditcache.bench.evaluate.vbench_total import QUALITY, SEMANTIC, totals
from ditcache.bench.evaluate.videos import Videos, write_mp4
from ditcache.runtime import cli

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.append(HERE)
import fake_vbench  # noqa: E402

av = pytest.importorskip("av")
STILL, MOVING = "In a still frame, a stop sign", "a dog runs"
SUITE = [
    {"prompt_en": STILL, "dimension": ["temporal_flickering"]},
    {"prompt_en": MOVING, "dimension": sorted({*QUALITY, *SEMANTIC} - {"temporal_flickering"})},
]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package, as an interpreter finds it that has it on its path."""
    site = tmp_path / "site"
    fake_vbench.install(site, SUITE)
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    return vbench_scores.find(None)


def film(folder, count):
    """Files in the place of videos, each of another content."""
    videos = Videos(folder)
    for i in range(count):
        path = videos.path("uncached", i)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video %d" % i)
    return videos


def scores(package, tmp_path, captions):
    videos = film(tmp_path / "videos", len(captions))
    return vbench_scores.measure(
        package, videos, ["uncached"], captions, work=tmp_path / "work", device="cpu"
    )


def captions_of(tmp_path):
    path = tmp_path / "VBench_full_info.json"
    path.write_text(json.dumps(SUITE))
    return load_prompts(path)[0]


def calls(tmp_path, count):
    return (tmp_path / "work" / f"uncached-{count}" / "calls.txt").read_text().splitlines()


def test_a_video_is_written_and_equal_frames_give_equal_bytes(tmp_path):
    ramp = torch.linspace(0, 1, 64).expand(5, 3, 32, 64)
    noise = torch.rand(9, 3, 96, 64, generator=torch.Generator().manual_seed(0)) / 4 + 0.5
    made = set()
    for _ in range(8):
        write_mp4(tmp_path / "b.mp4", noise)
        made.add((tmp_path / "b.mp4").read_bytes())
        torch.rand(1000, 1000)  # leaves other memory behind
    assert len(made) == 1
    write_mp4(tmp_path / "a.mp4", ramp)
    with av.open(str(tmp_path / "a.mp4")) as file:
        frames = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
        assert file.streams.video[0].average_rate == 8
    assert len(frames) == 5
    seen = torch.from_numpy(frames[2]).float().permute(2, 0, 1) / 255
    assert float((seen - ramp[2]).abs().mean()) < 0.03


def test_scores_are_weighted_means_of_scaled_dimensions():
    low = {n: s.low for n, s in (QUALITY | SEMANTIC).items()}
    high = {n: s.high for n, s in (QUALITY | SEMANTIC).items()}
    assert totals(low)["VBench total"] == pytest.approx(0)
    assert totals(high)["VBench total"] == pytest.approx(1)
    # Of quality's weights, 6.5 in all, dynamic degree has half a one; quality counts four fifths.
    assert totals(high | {"dynamic_degree": 0.0}) == {
        "VBench quality": pytest.approx(6 / 6.5),
        "VBench semantic": pytest.approx(1),
        "VBench total": pytest.approx((4 * 6 / 6.5 + 1) / 5),
    }
    assert totals({n: v for n, v in high.items() if n != "scene"}).keys() == {"VBench quality"}


def test_the_suite_gives_each_prompt_as_often_as_vbench_wants_videos(tmp_path):
    prompts = captions_of(tmp_path)
    assert prompts[:4] == [STILL, MOVING, STILL, MOVING]
    assert (prompts.count(STILL), prompts.count(MOVING)) == (25, 5)


def test_on_its_own_prompts_all_dimensions_and_the_total_are_vbenchs(package, tmp_path):
    captions = captions_of(tmp_path)
    found = scores(package, tmp_path, captions)
    assert (found.failed, found.undefined) == ({}, {})
    values = found.values["uncached"]
    assert len(values) == 16 + 3
    assert set(calls(tmp_path, 30)) == {f"{n} vbench_standard" for n in QUALITY | SEMANTIC}
    files = {"videos": Videos(tmp_path / "videos")}
    own = [files["videos"].path("uncached", i) for i, c in enumerate(captions) if c == MOVING]
    mean = sum(map(fake_vbench.score, own)) / 5
    assert values["VBench scene"] == pytest.approx(mean)
    semantic = dict.fromkeys(SEMANTIC, mean)
    assert values["VBench semantic"] == pytest.approx(totals(semantic)["VBench semantic"])


def test_on_other_prompts_six_dimensions_run_and_nothing_is_called_a_total(package, tmp_path):
    found = scores(package, tmp_path, ["a boat", "a cat"])
    names = found.values["uncached"].keys()
    assert names == {f"{vbench_scores.shown(n)} (own prompts)" for n in vbench_scores.OF_ANY_VIDEO}
    assert "0 are there" in found.undefined["VBench total"]
    assert found.failed == {}
    some = scores(package, tmp_path, [MOVING] * 5)
    assert len(some.values["uncached"]) == 15 + 1
    assert "25 videos of each of its 1 prompts" in some.undefined["VBench temporal flickering"]
    assert some.undefined.keys() == {"VBench temporal flickering", "VBench total"}


def test_what_cannot_be_downloaded_is_missing_and_tried_again(package, tmp_path, monkeypatch):
    captions = captions_of(tmp_path)
    monkeypatch.setenv("FAKE_VBENCH_FAILS", "scene,color")
    first = scores(package, tmp_path, captions)
    assert first.failed.keys() == {"VBench scene", "VBench color"}
    assert "wget" in first.failed["VBench scene"]
    values = first.values["uncached"]
    assert "VBench quality" in values
    assert not {"VBench semantic", "VBench total"} & values.keys()
    assert "14 are there" in first.undefined["VBench total"]
    monkeypatch.delenv("FAKE_VBENCH_FAILS")
    half = tmp_path / "work" / "uncached-30" / "human_action_eval_results.json"
    half.write_text('{"human_action": [0.')
    done = len(calls(tmp_path, 30))
    second = scores(package, tmp_path, captions)
    assert second.failed == {}
    assert second.values["uncached"].items() > values.items()
    again = [line.split()[0] for line in calls(tmp_path, 30)[done:]]
    assert sorted(again) == ["color", "human_action", "scene"]


def test_a_package_that_breaks_is_a_reason(package, tmp_path):
    (package.folder / "__init__.py").write_text("import a_package_that_is_not_there")
    found = scores(package, tmp_path, ["a boat"])
    assert found.values == {"uncached": {}}
    assert len(found.failed) == 6
    assert "a_package_that_is_not_there" in found.failed["VBench subject consistency"]


def test_the_script_runs_on_any_module_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vbench", fake_vbench)
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "0.mp4").write_bytes(b"x")
    dimension = {"mode": "custom_input", "videos": str(tmp_path / "v"), "still": False}
    dimension["prompts"] = {"0.mp4": "a boat"}
    job = {"device": "cpu", "full_info": "", "out": str(tmp_path / "out")}
    names = ("motion_smoothness", "scene")
    failed = vbench_run.run(job | {"dimensions": [dimension | {"name": n} for n in names]})
    assert failed.keys() == {"scene"}
    assert json.loads((tmp_path / "out" / "failures.json").read_text()) == failed
    made = json.loads((tmp_path / "out" / "motion_smoothness_eval_results.json").read_text())
    assert made["motion_smoothness"][0] == fake_vbench.score(tmp_path / "v" / "0.mp4")


@pytest.mark.skipif(importlib.util.find_spec("vbench") is not None, reason="it is installed")
def test_an_absent_package_is_missing_or_refused_where_it_was_asked_for():
    found = vbench_scores.find(None)
    assert isinstance(found, str)
    assert "pip install vbench" in found
    with pytest.raises(BadInput, match="does not import vbench"):
        vbench_scores.find(sys.executable)
    with pytest.raises(BadInput, match="no-such-python"):
        vbench_scores.find("no-such-python")


def test_the_command_films_judges_and_goes_on(package, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["evaluate", "wan-emoji", "--out", str(out), "--n", "3", "--batch", "2"]
    arguments += ["--steps", "2", "--device", "cpu"]
    assert cli.main(arguments) == 0
    first = json.loads((out / "evaluate.json").read_text())
    entry = first["variants"]["uncached"]
    assert 0 < entry["VBench imaging quality (own prompts)"] < 1
    assert "VBench total" in first["missing"]
    assert first["vbench"] == "0.1.5"
    (films,) = (out / "work" / "videos").iterdir()
    files = {p.name: p.read_bytes() for p in (films / "uncached").iterdir()}
    assert files.keys() == {"000000.mp4", "000001.mp4", "000002.mp4"}
    (films / "uncached" / "000002.mp4").unlink()
    assert cli.main(arguments) == 0
    assert {p.name: p.read_bytes() for p in (films / "uncached").iterdir()} == files
    second = json.loads((out / "evaluate.json").read_text())
    assert second["variants"] == first["variants"]
    assert "VBench total: not measured" in capsys.readouterr().out
