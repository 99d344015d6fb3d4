"""What the training scripts share: schedule, moving average, checkpoints, a JSON log."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

TINY = Path(__file__).resolve().parent.parent / "tiny"


def warmup_cosine(progress: float, *, warmup: float = 0.02, floor: float = 0.01) -> float:
    """Learning-rate factor at `progress` in [0, 1]: linear warm-up, then cosine to `floor`."""
    if progress < warmup:
        return max(progress, 1e-4) / warmup
    done = min((progress - warmup) / (1 - warmup), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def plain_attention() -> None:
    """Attend by matrix products: at 80 tokens the fused CPU kernel took 40% of a training step.

    The switches are named after CUDA; the CPU's dispatcher heeds them too.
    """
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)


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


class Ema:
    """Exponential moving average of a module's parameters, with a warm-up of its horizon."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Mix the current parameters in; early on the average is short."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(self.shadow, current, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into `module`, which has the same architecture."""
        for target, value in zip(module.parameters(), self.shadow, strict=True):
            target.copy_(value)


@dataclass
class Log:
    """A training log that is written as JSON after each record and printed as it grows."""

    path: Path
    options: Mapping[str, Any]
    records: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    seconds_before: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Wall seconds of training, those before a resumption included."""
        return self.seconds_before + time.perf_counter() - self.started

    def add(self, step: int, **values: float) -> None:
        """Print and keep one record."""
        record = {"step": step, "seconds": round(self.seconds, 1)}
        record |= {name: round(value, 6) for name, value in values.items()}
        self.records.append(record)
        print(" ".join(f"{name}={value:g}" for name, value in record.items()), flush=True)
        self.write(self.path)

    def write(self, path: Path) -> None:
        """Write the whole log to `path`."""
        hardware = {
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
        }
        # Paths say nothing to a reader elsewhere.
        options = {name: v for name, v in self.options.items() if not isinstance(v, Path)}
        content = {"options": options, "hardware": hardware, "records": self.records}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")


def training_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, step: int, seconds: float
) -> dict[str, Any]:
    """Everything that `resume` needs."""
    return {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.shadow,
        "step": step,
        "seconds": seconds,
    }


def resume(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, log: Log
) -> int:
    """Load a training state if there is one; return the step to go on from."""
    if not path.exists():
        return 0
    state = load_state(path)
    module.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    ema.shadow = state["ema"]
    log.seconds_before = state["seconds"]
    if log.path.exists():
        kept = json.loads(log.path.read_text())["records"]
        log.records = [record for record in kept if record["step"] <= state["step"]]
    return state["step"]


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a resumable training state; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(dict(state), partial)
    os.replace(partial, path)


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote (tensors, numbers, strings only)."""
    return torch.load(path, map_location="cpu", weights_only=True)


@torch.no_grad()
def write_averaged(module: nn.Module, ema: Ema, out: Path) -> Any:
    """Write a diffusers model's averaged weights as fp16 safetensors; return the fp32 model."""
    final: Any = copy.deepcopy(module).eval()
    ema.copy_to(final)
    # Files stay small, and ten bits of mantissa are more than the noise of training is worth.
    copy.deepcopy(final).half().save_pretrained(str(out))
    config = out / "config.json"
    kept = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
    config.write_text(json.dumps(kept, indent=2) + "\n")  # a path says nothing elsewhere
    return final


def parameters_in_millions(module: nn.Module) -> float:
    """Count the parameters."""
    return sum(p.numel() for p in module.parameters()) / 1e6
