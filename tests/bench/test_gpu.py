"""The command for a GPU machine, as far as it goes without: its loop, ways, ledger and table."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
import torch

from bench.gpu import command, loop, table, worker
from bench.gpu.choice import Choice
from bench.gpu.measured import measured
from bench.gpu.peers import CacheDit, TaylorSeer
from bench.gpu.ways import Compiled, Ditcache, Eager, FirstBlock, Regional, Way, spread
from bench.ledger import Ledger

STEPS = 8


def tiny_flux() -> loop.Loop:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    module = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    kwargs = {
        "hidden_states": torch.randn(1, 16, 4),
        "timestep": torch.full((1,), 0.5),
        "pooled_projections": torch.randn(1, 8),
        "encoder_hidden_states": torch.randn(1, 3, 16),
        "txt_ids": torch.zeros(3, 3),
        "img_ids": torch.zeros(16, 3),
        "return_dict": False,
    }
    return loop.Loop("tiny", module.eval(), kwargs, torch.linspace(1, 1 / STEPS, STEPS))


class Tiny(Choice):
    def ways(self) -> list[Way]:
        return [
            Eager("eager"),
            Compiled("compile", inner="eager"),
            Ditcache("ditcache exact", inner="eager"),
            Ditcache("ditcache 2x", speedup=2.0, inner="eager"),
            Ditcache("ditcache 2x graphs", speedup=2.0, graphs=True, inner="eager"),
            Ditcache("ditcache 2x guarded", speedup=2.0, guard="compute", inner="eager"),
            FirstBlock("first block, device", on_device=True, inner="eager", threshold=0.9),
        ]


def test_the_ways_have_names_of_their_own():
    for quick in (False, True):
        names = [way.name for way in Choice(quick=quick).ways()]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("steps", "speedup", "count"), [(10, 2, 5), (10, 3, 4), (10, 5, 2), (6, 1, 6)]
)
def test_a_speedup_computes_its_share_of_steps(steps: int, speedup: float, count: int):
    found = spread(steps, speedup)
    assert len(set(found)) == len(found) == count
    assert found[0] == 0
    if count > 2:
        assert found[-1] == steps - 1


def test_one_model_all_ways_and_nothing_twice(tmp_path):
    path, made = tmp_path / "results.jsonl", []

    def make() -> loop.Loop:
        made.append(1)
        return tiny_flux()

    assert worker.run("tiny", make, Tiny(), Ledger(path, "k"), until=time.time() - 1) == 3
    assert not Ledger(path, "k").records, "no time, nothing measured"
    ledger = Ledger(path, "k")
    assert worker.run("tiny", make, Tiny(), ledger, rounds=2) == 0
    assert worker.run("tiny", make, Tiny(), Ledger(path, "k"), rounds=2) == 0
    assert len(made) == 2, "the third run found everything in the ledger"
    by = {r["way"]: r for r in table.rows(ledger.records.values())}
    assert not [r["error"] for r in by.values() if "error" in r]
    assert by["eager"]["computed_steps"] == STEPS
    assert by["eager"]["skipped"] is None
    half = by["ditcache 2x"]
    assert half["computed_steps"] == STEPS // 2
    # Two unmeasured and two measured generations under the plan.
    assert half["forecast"] == 4 * STEPS // 2
    assert not half["fallbacks"]
    assert by["ditcache 2x guarded"]["forecast"] == half["forecast"]
    assert not by["ditcache 2x guarded"]["fallbacks"]
    assert half["realised"] > 0
    assert by["ditcache 2x graphs"]["uncaptured"], "a CPU has no graphs, and that is said"
    assert by["first block, device"]["forecast"] > 0
    assert (
        half["digest"] == by["ditcache 2x graphs"]["digest"] == by["ditcache 2x guarded"]["digest"]
    )
    assert half["digest"] != by["eager"]["digest"] == by["ditcache exact"]["digest"]
    assert half["waits"] is None, "of a device, that is"
    assert 0 < half["skipped_share"] < 1
    text = table.markdown(ledger.records.values())
    assert "| tiny | ditcache 2x | 4 of 8 |" in text
    assert all(line.count("|") == table.HEAD.count("|") for line in text.splitlines())


def test_a_way_that_fails_is_a_result(tmp_path):
    class Broken(Eager):
        def prepare(self, loop):
            raise RuntimeError("no such library")

    found = measured(Broken("broken"), tiny_flux(), 1)
    assert found["error"] == "RuntimeError: no such library"
    assert "in prepare" in found["where"]
    line = table.markdown([{"model": "tiny", "way": "broken", **found}]).splitlines()[-1]
    assert line.count("|") == table.HEAD.count("|")


@pytest.mark.parametrize("steps", [case.steps for case in worker.CASES.values()])
def test_other_libraries_compute_as_many_steps(steps: int):
    small = SimpleNamespace(steps=steps)
    computed = len(spread(steps, 3.0))
    assert len(TaylorSeer("taylorseer").computed(small)) == computed
    assert len(CacheDit("cache-dit").computed(small)) == computed


def test_regional_compilation_leaves_the_model_as_it_was():
    small = tiny_flux()
    way = Regional("regional", inner="eager")
    found = measured(way, small, 1)
    assert "error" not in found, found
    assert found["digest"] == measured(Eager("eager"), small, 1)["digest"]
    assert all(part._compiled_call_impl is None for part in small.module.modules())


@pytest.mark.parametrize("way", [TaylorSeer("taylorseer"), CacheDit("cache-dit")])
def test_other_libraries_compute_the_same_share(way):
    pytest.importorskip("cache_dit")
    ran: list[int] = []
    small = tiny_flux()
    handle = small.module.single_transformer_blocks[-1].attn.to_q.register_forward_hook(
        lambda *_: ran.append(1)
    )
    found = measured(way, small, 1)
    handle.remove()
    assert "error" not in found, found
    assert len(ran) == 3 * found["computed_steps"]


def test_a_way_that_takes_the_process_down_is_tried_twice(tmp_path, monkeypatch):
    """A crash, or the command out of time: what is in the ledger says so."""
    tried: list[str] = []

    class Two(Choice):
        def ways(self) -> list[Way]:
            return [Eager("one"), Eager("two")]

    def crashes(way: Way, *_):
        tried.append(way.name)
        if way.name == "one":
            raise KeyboardInterrupt
        return {"error": "none"}

    monkeypatch.setattr(worker, "measured", crashes)
    path = tmp_path / "r.jsonl"
    for _ in range(worker.TRIES):
        with pytest.raises(KeyboardInterrupt):
            worker.run("tiny", tiny_flux, Two(), Ledger(path, "k"))
    assert worker.run("tiny", tiny_flux, Two(), Ledger(path, "k")) == worker.Exit.DONE
    assert tried == ["one", "one", "two"]
    line = table.markdown(Ledger(path, "k").records.values()).splitlines()[2]
    assert worker.DID_NOT_END in line


def test_the_command_runs_its_parts_and_shows_a_table(tmp_path, monkeypatch, capsys):
    """From options to table, on a device that is none; each part in this process."""
    cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "stand-in")
    there = SimpleNamespace(cuda=cuda, device=torch.device, __version__="2.13")
    monkeypatch.setattr(command, "torch", there)
    kernels = {"rows": [{"size": "beyond L2", "kernel": "write", "of_copy": 1.0, "agrees": True}]}
    (tmp_path / "kernels.json").write_text(json.dumps(kernels))
    (tmp_path / "tests.xml").write_text('<a><testcase classname="a" name="b"/></a>')

    class Case(worker.Case):
        def load(self, device: torch.device) -> loop.Loop:
            assert device.type == "cuda"
            return tiny_flux()

    monkeypatch.setattr(command, "CASES", {"tiny": Case("tiny", STEPS), "bad": None})
    monkeypatch.setattr(command, "QUICK", ("bad", "tiny"))

    class Few(Tiny):
        def ways(self) -> list[Way]:
            return [way for way in super().ways() if way.name in ("eager", "ditcache 2x")]

    monkeypatch.setattr(command, "Choice", Few)
    ran: list[str] = []

    def here(arguments: list[str], seconds: float) -> tuple[int, str]:
        assert 0 < seconds <= 600
        _, flag, module, *options = arguments
        assert flag == "-m"
        ran.append(module)
        if module != command.__package__:
            return 0, f"{module} {options}"
        try:
            return command.main(options), ""
        except AttributeError as failed:
            return 1, f"{failed}"

    monkeypatch.setattr(command, "_run", here)
    for _ in range(2):
        assert command.main(["--out", str(tmp_path), "--quick"]) == 0
    assert ran == ["pytest", "bench.kernels", *[command.__package__] * 3], "only what failed again"
    text = capsys.readouterr().out
    assert "| tiny | ditcache 2x | 4 of 8 |" in text
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert {p["name"]: p["status"] for p in document["parts"]} == {
        "part tests": 0, "part kernels": 0, "part bad": 1, "part tiny": 0,
    }  # fmt: skip
    assert len(document["rows"]) == 2
    assert not document["not_reached"]
    assert document["tests"] == [{"test": "a.b", "outcome": "passed", "message": ""}]
    assert document["kernels"] == kernels
    assert [c["name"] for c in document["criteria"]] == ["kernel write", "kernels agree with torch"]
    assert "| kernel write | " in text


def test_latents_of_other_channels_than_the_output():
    x, out = torch.zeros(2, 8, 3), torch.ones(2, 4, 3)
    moved = loop.euler(x, out, 10)
    assert moved[:, :4].ne(0).all()
    assert not moved[:, 4:].any()
    assert loop.euler(out, x + 1, 10).shape == out.shape


@pytest.mark.parametrize("name", list(worker.CASES))
def test_the_models_exist_at_these_sizes(name: str):
    case = worker.CASES[name]
    made = case.load(torch.device("meta"))
    assert made.steps == case.steps
    assert {made.latents, "timestep"} <= made.kwargs.keys()
