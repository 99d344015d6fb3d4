"""Configuration, scopes and the plan store, each by itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ditcache
import pytest
import torch
from ditcache import OptionError, Plan, PlanError, RegionSchedule
from ditcache.runtime import config
from ditcache.runtime.store import PlanStore

TIMES = (1.0, 0.8, 0.6, 0.4, 0.2)


def a_plan(times=TIMES) -> Plan:
    rows = tuple((0.0,) if i in (0, 2) else (1.0,) for i in range(len(times)))
    region = RegionSchedule("denoiser", (0, 2), rows, 1, "", "")
    return Plan("sig", tuple(times), (region,), "edf").validate()


# Configuration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": 2}, "Did you mean 'speedup'"),
        ({"speedup": 0.5}, "at least 1"),
        ({"speedup": True}, "at least 1"),
        ({"speedup": float("nan")}, "at least 1"),
        ({"computed_steps": 2.5}, "whole number"),
        ({"max_error": -0.1}, "relative error"),
        ({"profile_generations": 0}, "whole number"),
        ({"speedup": 2.0, "computed_steps": 5}, "exclude each other"),
        ({"policy": "fast"}, "expected one of"),
        ({"policy": "exact", "speedup": 2.0}, "skips none"),
        ({"plan": 3}, "expected a Plan"),
        ({"hoist_budget": -1}, "bytes"),
        ({"speedup": float("inf")}, "at least 1"),
        ({"guidance": "high"}, "a guidance scale such as 3.5"),
        ({"remember": "no"}, "expected True or False"),
        ({"cuda_graphs": 1}, "expected True or False"),
        ({"cache_dir": 3}, "expected a folder"),
        ({"slot_format": ["int8"]}, "expected one of bf16, fp16"),
        ({"guard": "shout"}, "expected one of off, warn, densify"),
        ({"policy": ["fora"]}, "expected one of edf"),
        ({"policy_options": {"interval": 3}}, "unknown option 'policy_options'"),
        ({"inner": "inductr"}, "'inner' is 'inductr'; expected inductor, eager or another"),
        ({"inner": "ditcache"}, "'inner' is 'ditcache'; expected inductor, eager or"),
        ({"inputs": ["x"]}, "expected roles by name"),
        ({"inputs": {"x": "latent"}}, "gives 'x' the role 'latent'; expected one of latents"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(OptionError, match=message):
        config.parse(options)


def test_options_that_are_given_are_in_the_config():
    assert config.parse(None).budget == {"speedup": 2.0}
    assert config.parse({"computed_steps": 5}).budget == {"computed_steps": 5}
    assert config.parse({"max_error": 0.01, "guard_filter_fn": print}).budget == {"max_error": 0.01}
    assert not config.parse({"policy": "none"}).profiles_itself
    assert config.parse({"inner": "aot_eager", "inputs": {"y": "condition"}}).inner == "aot_eager"


def test_none_leaves_an_option_at_its_default():
    every = {f.name: None for f in dataclasses.fields(config.Config) if f.name != "policy_options"}
    assert config.parse(every) == config.Config()
    assert config.parse({"speedup": 3.0, "plan": None}).budget == {"speedup": 3.0}


def test_every_option_is_documented():
    root = Path(__file__).parents[2]
    pages = "".join(page.read_text() for page in (root / "README.md", *root.glob("docs/*.md")))
    for field in dataclasses.fields(config.Config):
        assert f"`{field.name}`" in (config.Config.__doc__ or "")
        assert field.name in pages or field.name == "policy_options"


def test_a_plan_may_be_given_by_its_path(tmp_path):
    a_plan().save(tmp_path / "p.json")
    assert config.parse({"plan": tmp_path / "p.json"}).plan == a_plan()
    assert config.parse({"plan": str(tmp_path / "p.json")}).plan == a_plan()
    with pytest.raises(PlanError, match="no such plan file"):
        config.parse({"plan": tmp_path / "q.json"})


@pytest.mark.parametrize("grid", [[], [1.0, 1.0, 0.5], [1.0, 0.5, 0.7]])
def test_bad_grids_are_named(grid):
    with pytest.raises(ValueError, match="strictly monotone"), ditcache.generation(grid):
        pass


def test_a_branch_has_to_have_a_name():
    with pytest.raises(TypeError, match="a name such as 'cond', got 0"), ditcache.branch(0):
        pass


def test_a_plan_is_a_plan_or_its_path():
    with pytest.raises(TypeError, match="expected a Plan or the path of one, got dict"):
        ditcache.apply(torch.nn.Linear(1, 1), {"plan": "p.json"})


# Store ------------------------------------------------------------------------------------------


def test_a_store_returns_what_was_saved_and_skips_what_is_broken(tmp_path, caplog):
    def store(**changes):
        settings = config.parse({"cache_dir": str(tmp_path)} | changes)
        return PlanStore(settings, "sig", "weights")

    one, two = a_plan(), a_plan(times=(1.0, 0.7, 0.5, 0.3, 0.1))
    store().save(one)
    store().save(two)
    store().save(dataclasses.replace(one, expected_error=0.5))
    assert len(store().load()) == 2
    for changes in ({"speedup": 3.0}, {"policy": "reuse"}, {"guidance": 2.0}):
        assert store(**changes).load() == []
    assert PlanStore(config.parse({"cache_dir": str(tmp_path)}), "sig", "others").load() == []
    victim = next(store().folder.iterdir())
    victim.write_text(victim.read_text()[:100])
    assert len(store().load()) == 1
    assert "ignoring the remembered plan" in caplog.text


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    PlanStore(config.parse({"cache_dir": str(tmp_path / "file")}), "s", "w").save(a_plan())
    assert "cannot remember the plan" in caplog.text
