"""Fixtures that the tests of the IR and of the passes share."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest
import torch
from ditcache.passes import pipeline
from ditcache.passes.base import PassContext
from ditcache.passes.plan_format import Plan, RegionSchedule
from ditcache.passes.printer import print_graph
from ditcache.passes.profile import Profile, RegionProfile
from ditcache.passes.trace import trace
from filecheck.matcher import Matcher
from filecheck.options import Options


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def filecheck(tmp_path, capsys):
    """Match IR text against CHECK lines; the failure shows both."""

    def match(text: str, checks: str) -> None:
        expected, got = tmp_path / "expected", tmp_path / "got"
        expected.write_text(textwrap.dedent(checks))
        got.write_text(text)
        if Matcher.from_opts(Options(str(expected), str(got))).run():
            pytest.fail(f"{capsys.readouterr().err}\n{text}", pytrace=False)

    return match


@pytest.fixture
def lowered():
    """Run the pipeline through a pass on a model; gives the graph or, with `text`, its IR."""

    def run(model, arguments, through, *, text=True, dynamic=None, **context):
        args, kwargs = ((), arguments) if isinstance(arguments, dict) else (arguments, {})
        graph = trace(model.eval(), args, kwargs, name=type(model).__name__, dynamic=dynamic)
        names = [p.name for p in pipeline.DEFAULT]
        passes = pipeline.DEFAULT[: names.index(through) + 1]
        ctx = PassContext(**context)
        done, _ = pipeline.run(graph, passes, ctx, check="full")
        return print_graph(done, after=through, plan=ctx.plan) if text else done

    return run


@pytest.fixture
def planned():
    """A plan that computes the given steps of `steps` and repeats or extrapolates between."""

    def plan(*regions, computed=(0, 2), steps=4, history=1):
        rows = []
        for step in range(steps):
            done = sum(c < step for c in computed)
            row = [0.0] * history
            if step not in computed:
                row[0], row[1:2] = (2.0, [-1.0]) if min(done, history) > 1 else (1.0, row[1:2])
            rows.append(tuple(row))
        return Plan(
            signature="0" * 16,
            timesteps=tuple(float(steps - i) for i in range(steps)),
            regions=tuple(
                RegionSchedule(r, tuple(computed), tuple(rows), history, "test", "test")
                for r in regions
            ),
            policy="test",
        ).validate()

    return plan


@pytest.fixture
def profile_of():
    """A profile of the denoiser with these outputs [T, n]."""

    def profile(outputs: np.ndarray) -> Profile:
        gram = outputs @ outputs.T / outputs.shape[1]
        grid = tuple(float(len(outputs) - i) for i in range(len(outputs)))
        region = RegionProfile("denoiser", gram[None, None], outputs.shape[1:], "float32")
        return Profile("0" * 16, grid, ("",), 1, (region,))

    return profile
