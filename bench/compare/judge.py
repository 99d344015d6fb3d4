"""Quality of one sample's frames: to the baseline, to its input, over time, and whether at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .. import metrics
from ..features import SPACE, features, looks

IMAGE_SIM = f"{SPACE}-image-sim"
"""Mean cosine of each frame's EfficientNet-Lite0 features to those of the input picture."""

DISTANCE = f"{SPACE}-distance"
"""Perceptual distance, of LPIPS's form with another network (`features.EfficientNetLite0.look`)."""

BLACK, CONSTANT, STILL, FROZEN, NOISE = 0.03, 0.012, 0.5 / 255, 0.1, 0.35


@dataclass(frozen=True)
class Looks:
    """Frames [F, 3, H, W] in [0, 1] with what several measures need of them."""

    frames: Tensor
    features: Tensor
    maps: Tensor

    @staticmethod
    def of(frames: Tensor) -> Looks:
        return Looks(frames, *looks(frames))


def judge(
    made: Looks,
    baseline: Looks,
    image: Image.Image | None,
    *,
    finite: bool = True,
) -> dict[str, float | str | None]:
    """All quality numbers of one sample.

    psnr (dB), ssim, distance: mean over frames, to the baseline's frames of the same input and
    seed; None if the number of frames differs. image_sim: to the input picture. temporal_ssim,
    temporal_distance: mean over pairs of neighbours; None for a single picture. motion: mean
    absolute change of brightness from frame to frame, in [0, 1]. collapsed: "" or what went wrong.
    """
    frames = made.frames
    found: dict[str, float | str | None] = {
        "psnr": None,
        "ssim": None,
        "distance": None,
        "image_sim": None,
        "temporal_ssim": None,
        "temporal_distance": None,
        "motion": motion(frames),
        "collapsed": collapsed(frames, baseline.frames, finite=finite),
    }
    if frames.shape == baseline.frames.shape:
        found["psnr"] = float(metrics.psnr(frames, baseline.frames).mean())
        found["ssim"] = float(metrics.ssim(frames, baseline.frames).mean())
        found["distance"] = float(distances(made.maps, baseline.maps).mean())
    if image is not None:
        wanted = features(as_tensor(image))
        found["image_sim"] = float(F.cosine_similarity(made.features, wanted, dim=1).mean())
    if len(frames) > 1:
        found["temporal_ssim"] = float(metrics.ssim(frames[1:], frames[:-1]).mean())
        found["temporal_distance"] = float(distances(made.maps[1:], made.maps[:-1]).mean())
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in found.items()}


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Perceptual distance [N] of pictures by their maps [N, M]; 0 for equal ones."""
    return (first - second).square().sum(1).double()


def motion(frames: Tensor) -> float | None:
    """Mean absolute change of brightness between neighbouring frames; None for one picture."""
    if len(frames) < 2:
        return None
    grey = frames.float().mean(1)
    return float((grey[1:] - grey[:-1]).abs().mean())


def collapsed(frames: Tensor, baseline: Tensor, *, finite: bool = True) -> str:
    """Name what makes this output useless, "" if nothing does.

    "not finite"; "black": no pixel is brighter than a few levels; "constant": no frame has any
    structure; "noise": neighbouring pixels are hardly alike, where the baseline's are; "frozen":
    frames do not change, where the baseline's do (a smooth video is not a still one).
    """
    if not finite:
        return "not finite"
    grey = frames.float().mean(1)
    if float(grey.max()) < BLACK:
        return "black"
    if float(grey.flatten(1).std(1).max()) < CONSTANT:
        return "constant"
    if _smoothness(grey) < NOISE < _smoothness(baseline.float().mean(1)):
        return "noise"
    moved, reference = motion(frames), motion(baseline)
    if moved is None or reference is None or reference <= STILL:
        return ""
    return "frozen" if moved < max(STILL, FROZEN * reference) else ""


def as_tensor(image: Image.Image) -> Tensor:
    """Float32 [1, 3, H, W] in [0, 1]."""
    pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2).float() / 255


def _smoothness(grey: Tensor) -> float:
    """Correlation of horizontally neighbouring pixels over all frames [F, H, W]."""
    centred = grey - grey.mean((1, 2), keepdim=True)
    left, right = centred[:, :, :-1].flatten(), centred[:, :, 1:].flatten()
    scale = left.norm() * right.norm()
    return float(left @ right / scale) if scale > 0 else 1.0
