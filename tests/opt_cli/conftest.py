"""ditcache-opt as its callers meet it: run on toy models, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from ditcache.passes import opt, pipeline
from ditcache.passes.base import PassContext
from ditcache.passes.opt_load import load
from ditcache.passes.plan_format import Plan, RegionSchedule
from ditcache.passes.signature import model_signature


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # for toy_factory
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            opt.main(list(arguments))
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture
def signature(cli):
    """What the plans and profiles of toy_factory:make are for."""
    graph, _ = pipeline.run(load("toy_factory:make", {}), pipeline.DEFAULT[:2], PassContext())
    return model_signature(graph)


@pytest.fixture
def plan(tmp_path, signature):
    """A plan for toy_factory:make in the file plan.json."""
    rows = ((0.0,), (1.0,), (0.0,), (1.0,))
    schedule = RegionSchedule("denoiser", (0, 2), rows, 1, "reuse", "uniform")
    made = Plan(signature, (4.0, 3.0, 2.0, 1.0), (schedule,), "reuse")
    made.save(tmp_path / "plan.json")
    return made
