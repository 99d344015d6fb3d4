"""A Flux of four blocks and random weights in FluxPipeline: milliseconds a step."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel

from bench.workload import FluxEmoji


class TinyFlux(FluxEmoji):
    name = "tiny-flux"

    def __init__(self) -> None:
        super().__init__(guidance=2.0)
        self.denoiser = tiny_transformer(self.pipeline.transformer)


def tiny_transformer(like):
    """Fewer and narrower blocks, the same inputs and outputs."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=like.config.in_channels,
        num_layers=1,
        num_single_layers=3,
        attention_head_dim=32,
        num_attention_heads=1,
        joint_attention_dim=like.config.joint_attention_dim,
        pooled_projection_dim=like.config.pooled_projection_dim,
        axes_dims_rope=(8, 12, 12),
    ).eval()
