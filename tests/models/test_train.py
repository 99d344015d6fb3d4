from __future__ import annotations

import argparse
import json
import sys

import pytest
import torch
from ditcache.models.train.fitting import Ema, add_options, fit
from ditcache.models.train.log import Log
from safetensors.torch import load_file, save_file
from torch import nn


class Killed(Exception):
    """What a run that is stopped from outside dies of."""


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Fit a line in a folder of its own.

    A step takes one second of a made-up clock, which the learning rate follows, and draws by its
    own number: two runs can be compared to the last bit.
    """
    now = 0.0
    monkeypatch.setattr(Log, "seconds", property(lambda log: log.seconds_before + now))
    parser = argparse.ArgumentParser()
    add_options(parser, minutes=1, batch=8, lr=0.3, ema=0.9, log_every=8, save_minutes=0.4)

    def train(name, *options, kill_at=None, target=None, seen=None):
        nonlocal now
        now = 0.0
        torch.manual_seed(3)
        model = nn.Linear(1, 1)

        def loss_of(step):
            nonlocal now
            if step == kill_at:
                raise Killed
            if seen is not None:
                seen.append(target.weight.item())
            now += 1.0
            x = torch.randn(8, 1, generator=torch.Generator().manual_seed(step))
            error = model(x) - (2 * x + 1)
            return error.square().mean(), {"largest": error.abs().max()}

        out = tmp_path / name
        fit(
            model,
            loss_of,
            parser.parse_args([*options, "--work", str(out / "work")]),
            name="line",
            write=lambda averaged: save_file(averaged.state_dict(), out / "line.safetensors"),
            log_to=out / "line_log.json",
            target=target,
            judge=lambda averaged: {"slope": averaged.weight.item()},
            facts={"lines": 1},
        )
        return model

    return train


def test_a_killed_run_goes_on_as_if_nothing_had_happened(train, tmp_path):
    train("whole")
    with pytest.raises(Killed):
        train("killed", kill_at=45)  # states are saved after 25 and, had it lived, 50 steps
    assert (tmp_path / "killed" / "line_log.json").exists()
    train("killed")
    whole, killed = (
        json.loads((tmp_path / name / "line_log.json").read_text()) for name in ("whole", "killed")
    )
    assert whole["options"]["lines"] == 1
    assert [record["step"] for record in whole["records"]] == [*range(8, 57, 8), 60]
    # What was logged between the state and the kill is logged again, not twice.
    assert [record["step"] for record in killed["records"]] == [*range(8, 57, 8), 60]
    # The mean at step 32 lacks step 25, which was made before the state.
    for ours, theirs in zip(killed["records"], whole["records"], strict=True):
        if ours["step"] != 32:
            assert ours == theirs
    weights = [load_file(tmp_path / n / "line.safetensors") for n in ("whole", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in ("weight", "bias"))
    first, last = whole["records"][0], whole["records"][-2]
    assert last["loss"] < 0.1 * first["loss"]
    assert last["loss"] <= last["largest"] ** 2
    assert whole["records"][-1]["slope"] == pytest.approx(2, abs=0.1)


def test_the_averaged_weights_are_written_and_a_spent_run_only_writes(train, tmp_path):
    model = train("line")
    written = load_file(tmp_path / "line" / "line.safetensors")
    state = torch.load(tmp_path / "line" / "work" / "line.state", weights_only=True)
    assert torch.equal(written["weight"], state["ema"][0])
    assert torch.equal(model.weight, state["model"]["weight"])
    assert not torch.equal(written["weight"], model.weight)
    (tmp_path / "line" / "line.safetensors").unlink()
    again = train("line")
    assert torch.equal(again.weight, model.weight)
    assert torch.equal(load_file(tmp_path / "line" / "line.safetensors")["weight"], state["ema"][0])


def test_a_target_has_the_average_of_the_steps_before(train):
    target, seen = nn.Linear(1, 1).requires_grad_(False), []
    with pytest.raises(Killed):
        train("line", target=target, seen=seen, kill_at=40)
    assert len(set(seen)) == 40
    before = len(seen)
    train("line", target=target, seen=seen)
    assert seen[before] == seen[25]  # the first one of the resumed run, after 25 steps


def test_a_state_of_which_half_was_written_is_not_read(train, tmp_path, monkeypatch):
    train("whole")
    real = torch.save

    def die_halfway(state, path):
        real(state, path)
        if state["step"] > 25:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", die_halfway)
        with pytest.raises(Killed):
            train("killed")
    work = tmp_path / "killed" / "work"
    assert sorted(path.name for path in work.iterdir()) == [
        "line.json",
        "line.state",
        "line.state.partial",
    ]
    assert torch.load(work / "line.state", weights_only=True)["step"] == 25
    train("killed")
    weights = [load_file(tmp_path / n / "line.safetensors") for n in ("whole", "killed")]
    assert torch.equal(weights[0]["weight"], weights[1]["weight"])


def test_the_moving_average_has_a_short_horizon_at_first():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
        ema = Ema(model, 0.9)
        model.weight.fill_(1.0)
    ema.update(model, 1)  # decay 2 / 11
    assert ema.shadow[0].item() == pytest.approx(9 / 11)
    ema.update(model, 1000)
    assert ema.shadow[0].item() == pytest.approx(1 - 2 / 11 * 0.9)


@pytest.mark.usefixtures("settings_of_a_fresh_process")
def test_the_digits_script_trains_and_goes_on(tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("sklearn")
    from ditcache.models.train import dit

    def main(minutes):
        small = "--width 32 --layers 1 --batch 4 --no-compile --log-every 1"
        places = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
        monkeypatch.setattr(sys, "argv", ["dit", *small.split(), "--minutes", minutes, *places])
        dit.main()
        return json.loads((tmp_path / "out" / "dit_log.json").read_text())["records"]

    first = main("0.01")
    second = main("0.02")
    assert second[: len(first)] == first
    assert second[len(first)]["step"] == len(first) + 1
    model = diffusers.DiTTransformer2DModel.from_pretrained(str(tmp_path / "out"))
    assert model.dtype == torch.float32
    stored = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert "_name_or_path" not in json.loads((tmp_path / "out" / "config.json").read_text())
