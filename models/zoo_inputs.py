"""Example inputs of one forward call for each architecture in the zoo, as its pipeline makes them.

One function per family: it takes the size of the request and returns keyword arguments. Shapes
follow diffusers' pipelines: how latents are packed, which length prompts are padded to, and in
which type the timestep comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Size:
    """A request: pixels, frames, batch rows, and where the tensors are to live."""

    height: int
    width: int
    frames: int
    batch: int
    dtype: torch.dtype
    device: torch.device

    def floats(self, *shape: int) -> torch.Tensor:
        """Return normal noise [batch, *shape] in the model's type."""
        return torch.randn(self.batch, *shape, dtype=self.dtype, device=self.device)

    def full(self, value: float, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return a constant [batch, *shape], in the model's type unless told otherwise."""
        return torch.full(
            (self.batch, *shape), value, dtype=dtype or self.dtype, device=self.device
        )

    def latent_frames(self, factor: int) -> int:
        """Frames left by a video autoencoder that keeps the first frame apart."""
        return (self.frames - 1) // factor + 1


Inputs = Callable[[Size], dict[str, Any]]


def _ids(rows: int, columns: int, size: Size) -> torch.Tensor:
    """Positions [rows * columns, 3] of Flux's image tokens."""
    ids = torch.zeros(rows, columns, 3, dtype=size.dtype, device=size.device)
    ids[..., 1] += torch.arange(rows, device=size.device)[:, None]
    ids[..., 2] += torch.arange(columns, device=size.device)[None, :]
    return ids.reshape(-1, 3)


def flux(
    *,
    patch: int = 16,
    channels: int = 64,
    text: tuple[int, int] = (512, 4096),
    pooled: int = 768,
    guidance: bool,
) -> Inputs:
    """Flux: packed latents, text tokens and pooled text; `patch` pixels to a token's side."""

    def inputs(size: Size) -> dict[str, Any]:
        rows, columns = size.height // patch, size.width // patch
        return {
            "hidden_states": size.floats(rows * columns, channels),
            "timestep": size.full(0.5),
            "guidance": size.full(3.5, dtype=torch.float32) if guidance else None,
            "pooled_projections": size.floats(pooled),
            "encoder_hidden_states": size.floats(*text),
            "txt_ids": torch.zeros(text[0], 3, dtype=size.dtype, device=size.device),
            "img_ids": _ids(rows, columns, size),
            "joint_attention_kwargs": {},
            "return_dict": False,
        }

    return inputs


def wan(size: Size) -> dict[str, Any]:
    """Wan 2.1 text to video: 4x8x8 latents, 512 text tokens."""
    frames = size.latent_frames(4)
    return {
        "hidden_states": size.floats(16, frames, size.height // 8, size.width // 8),
        "timestep": size.full(500, dtype=torch.int64),
        "encoder_hidden_states": size.floats(512, 4096),
        "attention_kwargs": None,
        "return_dict": False,
    }


def sd3(size: Size) -> dict[str, Any]:
    """Stable Diffusion 3.5: 77 CLIP and 256 T5 tokens."""
    return {
        "hidden_states": size.floats(16, size.height // 8, size.width // 8),
        "timestep": size.full(500, dtype=torch.float32),
        "encoder_hidden_states": size.floats(77 + 256, 4096),
        "pooled_projections": size.floats(2048),
        "joint_attention_kwargs": None,
        "return_dict": False,
    }


def dit(*, channels: int, factor: int) -> Inputs:
    """DiT: class labels instead of text; `factor` pixels to a latent."""

    def inputs(size: Size) -> dict[str, Any]:
        return {
            "hidden_states": size.floats(channels, size.height // factor, size.width // factor),
            "timestep": size.full(500, dtype=torch.int64),
            "class_labels": size.full(1, dtype=torch.int64),
            "return_dict": False,
        }

    return inputs


def svd(size: Size) -> dict[str, Any]:
    """Stable Video Diffusion: noise and the image's latents side by side, one image token."""
    return {
        "sample": size.floats(size.frames, 8, size.height // 8, size.width // 8),
        "timestep": torch.full((), 0.5, dtype=torch.float32, device=size.device),
        "encoder_hidden_states": size.floats(1, 1024),
        "added_time_ids": size.full(7, 3),
        "return_dict": False,
    }


def qwen_image(size: Size) -> dict[str, Any]:
    """Qwen-Image: packed latents; prompts have their own length, 128 tokens stand for them."""
    rows, columns = size.height // 16, size.width // 16
    return {
        "hidden_states": size.floats(rows * columns, 64),
        "timestep": size.full(0.5),
        "guidance": None,
        # The pipeline drops a mask that masks nothing.
        "encoder_hidden_states_mask": None,
        "encoder_hidden_states": size.floats(128, 3584),
        "img_shapes": [[(1, rows, columns)]] * size.batch,
        "attention_kwargs": {},
        "return_dict": False,
    }


def pixart(size: Size) -> dict[str, Any]:
    """PixArt-Sigma: 300 text tokens with a mask."""
    return {
        "hidden_states": size.floats(4, size.height // 8, size.width // 8),
        "encoder_hidden_states": size.floats(300, 4096),
        "encoder_attention_mask": size.full(1, 300, dtype=torch.int64),
        "timestep": size.full(500, dtype=torch.int64),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }


def sana(size: Size) -> dict[str, Any]:
    """Sana: latents of factor 32, 300 text tokens with a mask."""
    return {
        "hidden_states": size.floats(32, size.height // 32, size.width // 32),
        "encoder_hidden_states": size.floats(300, 2304),
        "encoder_attention_mask": size.full(1, 300, dtype=torch.int64),
        "timestep": size.full(500, dtype=torch.float32),
        "attention_kwargs": None,
        "return_dict": False,
    }


def hunyuan_video(size: Size) -> dict[str, Any]:
    """HunyuanVideo: 4x8x8 latents, 256 text tokens with a mask, guidance as an input."""
    frames = size.latent_frames(4)
    return {
        "hidden_states": size.floats(16, frames, size.height // 8, size.width // 8),
        "timestep": size.full(500),
        "encoder_hidden_states": size.floats(256, 4096),
        "encoder_attention_mask": size.full(1, 256),
        "pooled_projections": size.floats(768),
        "guidance": size.full(6000),
        "attention_kwargs": None,
        "return_dict": False,
    }


def ltx(size: Size) -> dict[str, Any]:
    """LTX-Video: 8x32x32 latents, one token each, 128 text tokens with a mask, 25 frames/s."""
    frames, rows, columns = size.latent_frames(8), size.height // 32, size.width // 32
    return {
        "hidden_states": size.floats(frames * rows * columns, 128),
        "encoder_hidden_states": size.floats(128, 4096),
        "timestep": size.full(500, dtype=torch.float32),
        "encoder_attention_mask": size.full(1, 128, dtype=torch.int64),
        "num_frames": frames,
        "height": rows,
        "width": columns,
        "rope_interpolation_scale": (8 / 25, 32, 32),
        "attention_kwargs": None,
        "return_dict": False,
    }
