"""The worked example of the documentation runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ditcache.passes import policies

from . import loops
from .models import STEPS, Dit, compare, denoise, run

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()


@pytest.fixture
def example():
    """The page's policy, registered for one test."""
    code = next(b for b in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "@register" in b)
    assert len([line for line in code.splitlines() if line.strip()]) < 25
    exec(compile(code, "policies.md", "exec", dont_inherit=True), {"__name__": __name__})
    yield
    del policies.ZOO["slowing"]


@pytest.mark.usefixtures("example")
def test_the_example_equals_its_loop():
    model = Dit()
    ours, ran, _ = run(model, "slowing", interval=3)
    steps = {0, 2, 4, 6, 9}
    theirs = loops.runs(model, [(1, 3, lambda i: i in steps)], order=1)
    compare(ours, theirs, [denoise(model, seed) for seed in range(2)], 2e-5)
    assert ran["mlp"] == 2 * STEPS + 2 * len(steps)


def test_the_table_lists_every_policy_with_its_defaults():
    rows = dict(re.findall(r"^\| `([\w-]+)` \|.*\| `([^|]*)` \|$", PAGE, re.M))
    assert rows.keys() == policies.ZOO.keys()
    for name, text in rows.items():
        assert policies.make(name) == eval(f"kind({text})", {"kind": policies.ZOO[name]}), name
