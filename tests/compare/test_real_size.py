"""Random weights at real size: the sizes on the meta device, the rows at a tiny size."""

from __future__ import annotations

import json

import pytest
import torch
from ditcache.bench.compare.real_size import SVD_XT, pipeline
from ditcache.runtime import cli


def test_networks_have_the_released_ones_numbers_of_parameters():
    made = pipeline(SVD_XT, torch.device("meta"), torch.float16)
    counts = {
        name: sum(p.numel() for p in getattr(made, name).parameters())
        for name in ("unet", "vae", "image_encoder")
    }
    assert counts == {"unet": 1_524_623_082, "vae": 97_742_847, "image_encoder": 632_076_800}


@pytest.mark.slow
def test_rows_have_times_and_memory_and_nothing_is_judged(tmp_path, child_path, capsys):
    arguments = ["compare", "tiny_pipelines:real_size", "--out", str(tmp_path), "--device", "cpu"]
    arguments += ["--methods", "M4,M5,M6,M7,C2", "--combine", "", "--steps", "6"]
    assert cli.main(arguments) == 1
    document = json.loads((tmp_path / "compare.json").read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert rows.pop("M5")["reason"].startswith("2:4 kernels need CUDA")
    for name, row in rows.items():
        assert row["status"] == "ok", row
        assert row["seconds"] > 0
        assert row["peak_bytes"] > 0
        assert (row["repeats"], row["timed_samples"]) == (3, 1)
        assert row["frames"] == 5, name
        empty = {k for k, v in row["quality"].items() if not v}
        assert empty == row["quality"].keys()
    assert rows["C2"]["facts"]["forecast"] > 0
    assert rows["M4"]["macs_reduction"] == pytest.approx(2, rel=0.1)  # no guidance
    assert "random weights" in document["unjudged"]
    assert document["clips"] == []
    assert not (tmp_path / "work" / "frames").exists()
    assert "quality columns are empty: random weights" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path)]) == 0
    assert "Quality columns are empty: random weights" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "blind.html").exists()
