"""What several training scripts do with a model before and after it is trained."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

TINY = Path(__file__).resolve().parent.parent / "tiny"


def planar_temporal_convolutions(module: nn.Module) -> None:
    """Compute every (3, 1, 1) convolution as a (3, 1) one over [T, H * W]: the same sums.

    The CPU's bf16 gradient of the weights of such a Conv3d is wrong (torch 2.13: NaN or 1e29).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d) and tuple(layer.kernel_size) == (3, 1, 1):
            layer._conv_forward = functools.partial(_planar, layer)  # pyright: ignore[reportAttributeAccessIssue]


def _planar(
    layer: nn.Conv3d, video: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    stride, padding = (layer.stride[0], 1), (int(layer.padding[0]), 0)
    flat = F.conv2d(video.flatten(3), weight.squeeze(-1), bias, stride, padding)
    return flat.unflatten(3, video.shape[3:])


def zero_modulation(module: nn.Module) -> None:
    """Start every adaptive layer norm, and the output, at zero: each block begins as identity."""
    for name, layer in module.named_modules():
        is_modulation = "norm" in name and name.endswith("linear")
        if isinstance(layer, nn.Linear) and (is_modulation or name.startswith("proj_out")):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def write_half(model: nn.Module, out: Path) -> None:
    """Write a diffusers or transformers model as fp16 safetensors; `model` stays as it is.

    Files stay small, and ten bits of mantissa are more than the noise of training is worth.
    """
    half: Any = copy.deepcopy(model).half()
    half.save_pretrained(str(out))
    config = out / "config.json"
    kept = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
    config.write_text(json.dumps(kept, indent=2) + "\n")  # a path says nothing elsewhere
