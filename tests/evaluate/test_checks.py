"""What cannot be used is refused before anything is loaded."""

from __future__ import annotations

import pytest
from ditcache.bench.evaluate import command
from ditcache.runtime import cli
from PIL import Image


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run the command with a loader that must not be reached; gives what was said."""

    def no_load(*_):
        pytest.fail("the model was loaded")

    monkeypatch.setattr(command, "load", no_load)

    def run(*more, model="flux-emoji"):
        arguments = ["evaluate", model, "--out", str(tmp_path / "out"), "--device", "cpu"]
        assert cli.main([*arguments, "-n", "2", *map(str, more)]) == 2
        return " ".join(capsys.readouterr().err.split())

    return run


def test_reference_sets_without_pictures_are_refused(refused, tmp_path):
    assert "no such folder" in refused("--reference", tmp_path / "nope")
    (tmp_path / "one").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "one" / "a.png")
    assert "fewer than two pictures" in refused("--reference", tmp_path / "one")
    assert "give a folder" in refused("--reference", "real", model="org/name")


def test_prompts_and_inputs(refused, tmp_path):
    assert "no such file" in refused("--prompts", tmp_path / "nope.txt")
    assert "does not exist" in refused("--inputs", tmp_path / "nope")
    (tmp_path / "p.txt").write_bytes(b"\n\xff\n")
    assert "no usable prompt" in refused("--prompts", tmp_path / "p.txt")


def test_plans(refused, tmp_path):
    (tmp_path / "a.plan.json").write_text("{}")
    assert "plan" in refused("--plan", tmp_path / "a.plan.json")
    (tmp_path / "2x.json").write_text("{}")
    assert "another variant is called 2x" in refused("--plan", tmp_path / "2x.json", "--speedup", 2)
    assert "at least 3 steps" in refused("--speedup", 2, "--steps", 2)


def test_places_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in refused("--out", tmp_path / "file")
    assert "nothing can be written" in refused("--out", tmp_path / "file" / "below")


def test_a_python_without_vbench(refused):
    assert "does not import vbench" in refused("--vbench", "no-such-python", model="wan-emoji")
