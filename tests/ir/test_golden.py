"""Whole dumps, as they are kept beside this file.

After an intended change of the printed form, `DITCACHE_REGENERATE=1 pytest tests/ir/test_golden.py`
writes the goldens anew; read the diff before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import toy_models as models

GOLDEN = Path(__file__).parent / "golden"
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
def test_the_printed_ir_is_the_golden_files(lowered, planned, case):
    model, arguments, through, region = CASES[case]
    plan = planned(region, computed=(0, 2, 5), steps=8, history=2) if region else None
    text = lowered(model(), arguments, through, plan=plan)
    path = GOLDEN / f"{case}.ir"
    if os.environ.get("DITCACHE_REGENERATE"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
