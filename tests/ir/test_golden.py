"""Whole dumps, and the documentation's examples against them.

After an intended change of the printed form, `DITCACHE_REGENERATE=1 pytest tests/ir/test_golden.py`
writes the goldens anew; read the diff before committing it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
import toy_models as models
from ditcache.passes import pipeline

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).parents[2] / "docs" / "passes"
STEP = {**models.inputs(), "hidden_states": models.wide()[0]}
CASES = {
    "step-form-regions": (models.Step, STEP, "form-regions", None),
    "step-cleanup": (models.Step, STEP, "cleanup", "blocks.0.mlp"),
    "joint-form-regions": (models.Joint, STEP, "form-regions", None),
    "unet-cleanup": (
        models.UNet,
        {"sample": torch.zeros(2, 4, 8, 8), "timestep": torch.zeros(2)},
        "cleanup",
        "deep",
    ),
    "rotary-cleanup": (models.Rotary, models.wide(), "cleanup", None),
}


@pytest.mark.parametrize("case", CASES)
def test_golden(lowered, planned, case):
    model, arguments, through, region = CASES[case]
    plan = planned(region, computed=(0, 2, 5), steps=8, history=2) if region else None
    text = lowered(model(), arguments, through, plan=plan)
    path = GOLDEN / f"{case}.ir"
    if os.environ.get("DITCACHE_REGENERATE"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_the_examples_in_the_docs_are_what_is_printed(lowered, planned):
    plan = planned("blocks.0.mlp", computed=(0, 2, 5), steps=8, history=2)
    printed = set()
    for name in pipeline.BY_NAME:
        dump = lowered(models.Step(), STEP, name, plan=plan).replace("@Step(", "@step(")
        printed |= {line.strip() for line in dump.splitlines()}
    # These pages show another model, which does what theirs is about.
    others = {"normalize", "cleanup", "tag-stability", "lower-cond"}
    for name in pipeline.BY_NAME.keys() - others:
        shown = re.findall(r"```\n(.*?)```", (DOCS / f"{name}.md").read_text(), re.S)
        lines = [line.strip() for block in shown for line in block.splitlines()]
        assert lines, name
        wrong = [line for line in lines if line not in printed]
        assert not wrong, f"{name}.md shows what is not printed: {wrong}"


def test_every_pass_has_its_page():
    table = (DOCS / "README.md").read_text()
    for name in pipeline.BY_NAME:
        assert (DOCS / f"{name}.md").is_file()
        assert f"]({name}.md)" in table
    listed = re.findall(r"^\| \d+ \| \[([\w-]+)\]", table, re.M)
    assert listed == list(pipeline.BY_NAME)
