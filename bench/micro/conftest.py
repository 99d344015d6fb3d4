"""Small Flux graphs of several depths, traced once a session."""

from __future__ import annotations

import functools

import pytest
import torch
from diffusers import FluxTransformer2DModel
from ditcache.passes.ir import StepGraph
from ditcache.passes.trace import trace

DEPTHS = (2, 8, 28, 57)


def small_flux(blocks: int, device: str = "cpu") -> FluxTransformer2DModel:
    """A Flux of `blocks` blocks, a third of them double, 64 wide."""
    double = max(1, blocks // 3)
    with torch.device(device):
        return FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=double,
            num_single_layers=blocks - double,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 6, 6),
        ).eval()


def flux_inputs(batch: int = 1, device: str = "cpu") -> dict[str, object]:
    """Inputs of one call: 16 image tokens, 8 text tokens."""
    return {
        "hidden_states": torch.randn(batch, 16, 16, device=device),
        "encoder_hidden_states": torch.randn(batch, 8, 32, device=device),
        "pooled_projections": torch.randn(batch, 32, device=device),
        "timestep": torch.full((batch,), 0.5, device=device),
        "img_ids": torch.zeros(16, 3, device=device),
        "txt_ids": torch.zeros(8, 3, device=device),
        "return_dict": False,
    }


@functools.cache
def traced(blocks: int) -> StepGraph:
    """The step graph of a meta-device Flux of that depth."""
    model = small_flux(blocks, "meta")
    return trace(model, (), flux_inputs(device="meta"), name=f"flux{blocks}")


@pytest.fixture(params=DEPTHS, ids=lambda n: f"{n}-blocks")
def graph(request: pytest.FixtureRequest) -> StepGraph:
    return traced(request.param)
