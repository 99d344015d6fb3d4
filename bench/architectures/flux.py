"""Flux and Flux 2."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import IMAGE, Architecture, Sampler, flow_scheduler, into, pipeline, prompts, side


def _flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )


def _called(call: dict[str, Any]) -> Sampler:
    from diffusers import FluxPipeline

    pipe = pipeline(FluxPipeline, scheduler=flow_scheduler(shift=3.0), transformer=_flux())
    return into(pipe, "transformer", lambda r: {**side(r), **call})


def _flux_pipeline() -> Sampler:
    return _called({**prompts(pooled=True, negative=False), "guidance_scale": 3.5})


def _flux_true_cfg_pipeline() -> Sampler:
    return _called({**prompts(pooled=True), "true_cfg_scale": 2.0})


def _flux2() -> nn.Module:
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )


def _flux2_pipeline() -> Sampler:
    from diffusers import Flux2Pipeline

    pipe = pipeline(Flux2Pipeline, scheduler=flow_scheduler(shift=3.0), transformer=_flux2())
    return into(
        pipe,
        "transformer",
        lambda r: {**side(r), **prompts(negative=False), "guidance_scale": 4.0},
    )


FLUX = "FluxTransformer2DModel"
ARCHITECTURES = (
    Architecture("Flux", FLUX, "FluxPipeline", IMAGE, "embedded", _flux, _flux_pipeline),
    Architecture(
        "Flux, true CFG", FLUX, "FluxPipeline", IMAGE, "separate", _flux, _flux_true_cfg_pipeline
    ),
    Architecture(
        "Flux 2",
        "Flux2Transformer2DModel",
        "Flux2Pipeline",
        IMAGE,
        "embedded",
        _flux2,
        _flux2_pipeline,
    ),
)
