"""A run that is killed and goes on, or runs on several processes, gives the same bits."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import ditcache
import pytest
import torch
import torch.distributed.run
from ditcache.bench.compare.subjects import Request, load
from ditcache.bench.evaluate.blocks import Blocks, Producer
from ditcache.bench.evaluate.command import prepare
from ditcache.bench.evaluate.results import results
from ditcache.bench.evaluate.scorers import panel
from ditcache.bench.evaluate.settings import Ranks, Settings
from ditcache.runtime import cli

SETTINGS = Settings(Request("flux-emoji", steps=2), count=5, block=2)


@pytest.fixture(scope="module")
def producer():
    subject, _ = prepare(SETTINGS, None)
    return Producer(SETTINGS, subject, {}, panel({}))


class Killed(Exception):
    pass


def finish(producer, folder, ranks, *, after=None):
    """Run until done, or until `after` samples have been made."""
    made = 0

    def tick(count):
        nonlocal made
        made += count
        if after is not None and made >= after:
            raise Killed

    blocks = Blocks(folder, "key", SETTINGS)
    producer.run(blocks, ranks, tick)
    return blocks


def numbers(producer, blocks):
    return json.dumps(results(blocks, ["uncached"], producer.panel, {}))


def test_killed_twice_and_on_two_processes_the_numbers_are_bit_equal(producer, tmp_path):
    whole = finish(producer, tmp_path / "whole", Ranks())
    for after in (2, 4):
        with pytest.raises(Killed):
            finish(producer, tmp_path / "killed", Ranks(), after=after)
    broken = Blocks(tmp_path / "killed", "key", SETTINGS).path(2)
    broken.write_bytes(b"half a file")
    resumed = finish(producer, tmp_path / "killed", Ranks())
    assert numbers(producer, resumed) == numbers(producer, whole)
    for rank in (1, 0):
        shared = finish(producer, tmp_path / "shared", Ranks(rank, 2))
    assert numbers(producer, shared) == numbers(producer, whole)
    for name in ("uncached/features:EffLite0", "uncached/pictures"):
        pairs = zip(whole.column(name), shared.column(name), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_documented_command_for_many_processes_is_understood():
    page = Path(ditcache.__file__).with_name("docs") / "compare.md"
    (line,) = (x for x in page.read_text().splitlines() if x.startswith("torchrun "))
    given = torch.distributed.run.parse_args(shlex.split(line)[1:])
    assert (given.nproc_per_node, given.module) == ("8", True)
    assert given.training_script == "ditcache.runtime.cli"
    assert given.training_script_args[0] == "evaluate"


@pytest.mark.slow
def test_two_processes_of_torchrun_write_what_one_does(producer, tmp_path):
    arguments = ["evaluate", "flux-emoji", "-n", "5", "--batch", "2", "--steps", "2"]
    arguments += ["--device", "cpu", "--out"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", "2", "-m", "ditcache.runtime.cli"]
    subprocess.run([*launch, *arguments, str(tmp_path / "two")], check=True, timeout=600)
    assert cli.main([*arguments, str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / n / "evaluate.json").read_text()) for n in ("one", "two"))
    assert two["variants"] == one["variants"]
    assert two["key"] == one["key"]


def test_samples_have_prompts_in_turn_and_seeds_of_their_own(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("red heart\ngreen heart\n")
    subject, skipped = prepare(SETTINGS, path)
    assert [s.caption for s in subject.samples] == ["red heart", "green heart"] * 2 + ["red heart"]
    assert [s.seed for s in subject.samples] == [0, 1, 2, 3, 4]
    assert skipped == []


def test_the_command_measures_a_plan_in_pairs_and_goes_on(tmp_path):
    arguments = [
        "evaluate", "flux-emoji", "--out", str(tmp_path), "--n", "2", "--batch", "2",
        "--steps", "6", "--speedup", "2", "--reference", "real", "--device", "cpu",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    first = json.loads((tmp_path / "evaluate.json").read_text())
    entry = first["variants"]["2x"]
    assert entry["samples"] == 2
    assert 10 < entry["psnr"]["mean"] < 100
    assert entry["FD-EffLite0:uncached"] > 0
    assert "FID" not in json.dumps(first)
    ran = first["plans"]["2x"]
    # Two guidance branches a step.
    assert (ran["calls"], ran["forecast"]) == (12, 12 - 2 * len(ran["computed"]))
    assert ran["macs_reduction"] > 1.5
    assert set(first["missing"]) == {"clip", "inception", "aesthetic", "image-reward", "lpips"}
    assert cli.main([*arguments, "--weights", "clip=absent/clip-model-nobody-has"]) == 1
    second = json.loads((tmp_path / "evaluate.json").read_text())
    assert second["variants"] == first["variants"]
    assert "clip-model" in second["missing"]["clip"]


def test_a_plan_that_would_change_nothing_is_refused(tmp_path, capsys):
    arguments = ["evaluate", "flux-emoji", "-n", "2", "--batch", "2", "--device", "cpu", "--out"]
    assert cli.main([*arguments, str(tmp_path / "a"), "--steps", "4", "--speedup", "2"]) == 0
    (plan,) = (tmp_path / "a" / "work").glob("*.plan.json")
    again = [*arguments, str(tmp_path / "b"), "--steps", "6", "--plan", str(plan)]
    assert cli.main(again) == 2
    said = capsys.readouterr().err
    assert "this plan of 4 steps forecasts none of the 6 steps of this run" in said
    assert not (tmp_path / "b" / "evaluate.json").exists()


def test_small_model_is_loaded_with_its_own_inputs():
    subject = load(Request("flux-emoji", count=3))
    assert len(subject.samples) == 3
    assert subject.calibration
