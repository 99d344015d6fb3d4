"""Frames on disk: one safetensors file a sample, uint8 [F, 3, H, W]."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def slug(name: str) -> str:
    """Make a file name of a method's or sample's name."""
    return "".join(c if c.isalnum() or c in "+-." else "_" for c in name)


def frames_path(out: Path, method: str, sample: str) -> Path:
    return out / "frames" / slug(method) / f"{slug(sample)}.safetensors"


def save_frames(path: Path, frames: Tensor) -> bool:
    """Write float frames in [0, 1] as bytes, at once or not at all; tells if all were finite."""
    finite = bool(torch.isfinite(frames).all())
    pixels = torch.nan_to_num(frames.float()).clamp(0, 1).mul(255).round().byte().cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({"frames": pixels.contiguous()}, part, {"finite": str(finite)})
    part.replace(path)
    return finite


def load_frames(path: Path) -> Tensor:
    """Float32 frames [F, 3, H, W] in [0, 1]."""
    return load_file(path)["frames"].float() / 255
