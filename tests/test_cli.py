"""The `ditcache` command, through its entry function."""

from __future__ import annotations

import numpy as np
import pytest
from ditcache import Plan, Profile
from ditcache.passes.profile import RegionProfile
from ditcache.runtime import cli
from ditcache.runtime.cli_show import sparkline, strip

STEPS = 20


@pytest.fixture
def profile(tmp_path):
    """A saved profile of smooth outputs with two regions."""
    x = np.linspace(1.0, 1.0 / STEPS, STEPS)
    y = np.stack([np.cos(3 * x), np.sin(2 * x), 1 + x**2], axis=1)
    gram = (y @ y.T)[None, None]
    regions = tuple(RegionProfile(n, gram, (1, 4, 8), "float32") for n in ("denoiser", "blocks.0"))
    path = tmp_path / "model.profile.safetensors"
    Profile("abc123", tuple(x.tolist()), ("",), 2, regions).save(path)
    return path


def refused(capsys, *arguments):
    assert cli.main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("ditcache: ")
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("option", "value", "computed"),
    [("--speedup", "2.0", 10), ("--computed-steps", "7", 7), ("--max-error", "0.5", None)],
)
def test_plan_is_made_shown_and_written(profile, tmp_path, capsys, option, value, computed):
    out = tmp_path / "a.plan.json"
    assert cli.main(["plan", str(profile), option, value, "-o", str(out)]) == 0
    made = Plan.load(out)
    if computed is not None:
        assert made.computed_steps == computed
    said = capsys.readouterr().out
    assert strip(made.regions[0], STEPS) in said
    assert cli.main(["show", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"{made.computed_steps} of {STEPS} steps" in shown
    assert "expected error" in shown
    assert shown.count("computed") >= made.computed_steps


def test_policy_reaches_the_plan(profile, tmp_path):
    out = tmp_path / "b.plan.json"
    cli.main(["plan", str(profile), "--speedup", "2", "--policy", "reuse", "-o", str(out)])
    assert Plan.load(out).policy == "reuse"


def test_profile_shows_regions_drift_and_frontier(profile, capsys):
    assert cli.main(["show", str(profile)]) == 0
    shown = capsys.readouterr().out
    for text in ("denoiser", "blocks.0", "2 generations of 20 steps", "frontier", "2.00x"):
        assert text in shown


def test_remembered_plans_are_listed_and_cleared(profile, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DITCACHE_CACHE_DIR", str(tmp_path / "cache"))
    assert cli.main(["cache"]) == 0
    assert "none" in capsys.readouterr().out
    kept = tmp_path / "cache" / "plans" / "0123456789ab" / "grid.plan.json"
    kept.parent.mkdir(parents=True)
    Profile.load(profile).plan(speedup=2.0).save(kept)
    (kept.parent / "bad.plan.json").write_text("{}")
    (kept.parent / "grid.profile.safetensors").write_bytes(profile.read_bytes())
    assert cli.main(["cache"]) == 0
    listed = capsys.readouterr().out
    assert "abc123" in listed
    assert "unreadable" in listed
    assert "no plan yet: 1" in listed
    assert cli.main(["cache", "--clear"]) == 0
    assert not kept.exists()
    assert (tmp_path / "cache").exists()


def test_info_names_versions_and_backend(capsys):
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    assert "torch" in said
    assert "NOT registered" not in said


def test_bad_input_is_one_line(profile, tmp_path, capsys):
    out = tmp_path / "x.json"
    assert "no such file" in refused(capsys, "show", tmp_path / "absent")
    assert "folder" in refused(capsys, "show", tmp_path)
    junk = tmp_path / "junk"
    junk.write_bytes(b"\x00\x01 nonsense")
    assert "not a profile" in refused(capsys, "show", junk)
    junk.write_text("{")
    assert "junk" in refused(capsys, "show", junk)
    junk.write_bytes(b"")
    assert "not a profile" in refused(capsys, "show", junk)
    assert "exactly one" in refused(capsys, "plan", profile, "-o", out)
    both = ("plan", profile, "--speedup", 2, "--max-error", 0.1, "-o", out)
    assert "--speedup and --max-error" in refused(capsys, *both)
    assert "out of reach" in refused(capsys, "plan", profile, "--speedup", 99, "-o", out)
    assert "policy" in refused(
        capsys, "plan", profile, "--speedup", 2, "--policy", "magic", "-o", out
    )
    assert "speedup" in refused(capsys, "plan", profile, "--speedup", "fast", "-o", out)
    assert "nonsense" in refused(capsys, "nonsense")
    assert not out.exists()
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(profile.read_bytes()[:-8])
    assert "calibrate again" in refused(capsys, "show", damaged)
    refused(capsys, "plan", profile, "--speedup", 2, "-o", junk / "below-a-file.json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--plan", "absent.json"), "absent.json"),
        (("--speedup", "0.5"), "--speedup"),
        (("--dtype", "int8"), "expected float16, bfloat16, float32 or auto"),
        (("--weights", "clip"), "expected ROLE=PATH_OR_HUB"),
        (("--weights", "clp=x"), "no role 'clp'; expected one of clip, inception"),
        (("--inner", "gcc"), "'inner' is 'gcc'; expected inductor, eager"),
        (("--device", "tpu"), "--device tpu: expected cpu, cuda or auto"),
        (("--steps", "0"), "--steps"),
    ],
)
def test_what_is_to_be_measured_is_checked_before_the_model_is_loaded(
    tmp_path, capsys, arguments, said
):
    assert said in refused(capsys, "evaluate", "flux-emoji", "--out", tmp_path, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_without_arguments_it_helps(capsys):
    assert cli.main([]) == 0
    assert "show" in capsys.readouterr().out


def test_sparkline_spans_its_range():
    assert sparkline([0.0, 1.0, 0.5]) == "▁█▅"
    assert sparkline([2.0, 2.0]) == "▁▁"
