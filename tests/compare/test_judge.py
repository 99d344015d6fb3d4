"""Quality of frames: what is identical, what moves, what has collapsed."""

from __future__ import annotations

import pytest
import torch
from ditcache.bench.compare.judge import Looks, collapsed, judge, motion
from PIL import Image


def moving(frames=4, side=32):
    """A bright disc that goes from left to right."""
    rows = torch.arange(side).view(-1, 1).float()
    columns = torch.arange(side).view(1, -1).float()
    made = []
    for i in range(frames):
        disc = torch.sigmoid(6 - ((rows - 16) ** 2 + (columns - 8 - 5 * i) ** 2).sqrt())
        made.append(disc.expand(3, -1, -1))
    return torch.stack(made)


def test_healthy_frames_are_not_flagged():
    assert collapsed(moving(), moving()) == ""


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (torch.zeros_like, "black"),
        (lambda x: torch.full_like(x, 0.5), "constant"),
        (lambda x: x[:1].expand_as(x), "frozen"),
        (lambda x: torch.rand(x.shape, generator=torch.Generator().manual_seed(0)), "noise"),
    ],
)
def test_useless_output_is_named(made, said):
    assert collapsed(made(moving()), moving()) == said


def test_numbers_that_were_not_finite_are_named():
    assert collapsed(moving(), moving(), finite=False) == "not finite"


def test_a_still_video_is_fine_where_the_baseline_is_still():
    still = moving()[:1].expand(4, -1, -1, -1)
    assert collapsed(still, still) == ""
    assert motion(still) == 0
    assert motion(still[:1]) is None


def test_equal_frames_have_no_distance_and_worse_frames_have_some():
    reference = Looks.of(moving())
    same = judge(reference, reference, Image.new("RGB", (32, 32), "white"))
    assert same["psnr"] == 100
    assert same["ssim"] == pytest.approx(1)
    assert same["distance"] == 0
    assert -1 <= same["image_sim"] <= 1
    blurred = Looks.of(moving() * 0.8)
    worse = judge(blurred, reference, None)
    assert worse["distance"] > 0.01
    assert worse["psnr"] < 40
    assert worse["image_sim"] is None


def test_another_number_of_frames_is_not_compared_frame_by_frame():
    found = judge(Looks.of(moving(3)), Looks.of(moving(4)), None)
    assert found["psnr"] is None
    assert found["temporal_ssim"] is not None
