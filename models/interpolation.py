"""A small network that makes the frame between two frames: flow, mask and residual (IFNet's kind).

Two stages, the second at twice the first's resolution, estimate how pixels of the middle frame
moved from both neighbours and which of the two to trust; a third adds what neither of them shows.
After Huang et al., "Real-Time Intermediate Flow Estimation for Video Frame Interpolation" (2022),
far smaller and for the middle frame only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrameInterpolator(nn.Module):
    """Middle frames of pairs: ([N, 3, H, W], [N, 3, H, W]) in [0, 1] -> [N, 3, H, W] in [0, 1].

    H and W have to be multiples of 8.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.coarse = _Stage(6, width, 5, factor=4)
        self.fine = _Stage(6 + 6 + 5, width, 5, factor=2)
        self.residual = _Stage(6 + 3 + 6 + 5, width // 2, 3, factor=1)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Make the middle frames; ValueError if sizes differ or are no multiples of 8."""
        if before.shape != after.shape or before.shape[-1] % 8 or before.shape[-2] % 8:
            raise ValueError(
                "expected two batches of frames of one size, a multiple of 8; got "
                f"{tuple(before.shape)} and {tuple(after.shape)}"
            )
        pair = torch.cat([before, after], dim=1)
        motion = self.coarse(pair)
        warped = _warp_both(before, after, motion)
        motion = motion + self.fine(torch.cat([pair, *warped, motion], dim=1))
        warped = _warp_both(before, after, motion)
        trust = motion[:, 4:5].sigmoid()
        merged = trust * warped[0] + (1 - trust) * warped[1]
        detail = self.residual(torch.cat([pair, merged, *warped, motion], dim=1))
        return (merged + detail.tanh()).clamp(0, 1)


class _Stage(nn.Module):
    """Convolutions at a fraction of the resolution; the last one starts at zero."""

    def __init__(self, inputs: int, width: int, outputs: int, *, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, width, 3, padding=1),
            nn.PReLU(width),
            *(_Residual(width) for _ in range(3)),
        )
        self.out = nn.Conv2d(width, outputs, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        if self.factor > 1:
            x = F.avg_pool2d(x, self.factor)
        x = self.out(self.layers(x))
        if self.factor > 1:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return x


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _warp_both(before: Tensor, after: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
    return _warp(before, motion[:, :2]), _warp(after, motion[:, 2:4])


def _warp(frames: Tensor, flow: Tensor) -> Tensor:
    """Fetch each pixel from where `flow` [N, 2, H, W] (right, down; in half-sides) points."""
    n, _, height, width = frames.shape
    rows = torch.linspace(-1, 1, height, device=frames.device, dtype=flow.dtype)
    columns = torch.linspace(-1, 1, width, device=frames.device, dtype=flow.dtype)
    down, right = torch.meshgrid(rows, columns, indexing="ij")
    grid = torch.stack([right, down], dim=-1).expand(n, -1, -1, -1) + flow.permute(0, 2, 3, 1)
    return F.grid_sample(frames, grid.to(frames.dtype), padding_mode="border", align_corners=True)


def double_rate(model: FrameInterpolator, clip: Tensor) -> Tensor:
    """Put a middle frame between all neighbours: [N, T, 3, H, W] -> [N, 2 T - 1, 3, H, W]."""
    count, frames = clip.shape[:2]
    middle = model(clip[:, :-1].flatten(0, 1), clip[:, 1:].flatten(0, 1))
    doubled = clip.new_empty(count, 2 * frames - 1, *clip.shape[2:])
    doubled[:, ::2] = clip
    doubled[:, 1::2] = middle.unflatten(0, (count, frames - 1))
    return doubled
