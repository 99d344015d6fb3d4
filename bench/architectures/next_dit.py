"""Z-Image and Lumina 2: the text is refined, then one stream holds it and the image."""

from __future__ import annotations

import torch
from torch import nn

from .base import (
    IMAGE,
    TEXT,
    Architecture,
    Sampler,
    flow_scheduler,
    into,
    masks,
    noise,
    pipeline,
    prompts,
    side,
)


def _z_image() -> nn.Module:
    from diffusers import ZImageTransformer2DModel

    return ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=12,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 32, 32],
    )


def _z_image_pipeline() -> Sampler:
    from diffusers import ZImagePipeline

    pipe = pipeline(ZImagePipeline, scheduler=flow_scheduler(shift=3.0), transformer=_z_image())
    return into(
        pipe,
        "transformer",
        lambda r: {
            **side(r),
            "prompt_embeds": [noise(TEXT, 12)],
            "negative_prompt_embeds": [noise(4, 12, seed=8)],
            "guidance_scale": 4.0,
        },
    )


def _lumina2() -> nn.Module:
    from diffusers import Lumina2Transformer2DModel

    return Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(32, 16, 16),
        cap_feat_dim=12,
    )


def _lumina2_pipeline() -> Sampler:
    from diffusers import Lumina2Pipeline

    pipe = pipeline(Lumina2Pipeline, transformer=_lumina2(), scheduler=flow_scheduler(shift=3.0))
    return into(
        pipe,
        "transformer",
        lambda r: {
            **side(r),
            **masks(torch.bool),
            **prompts(),
            "guidance_scale": 4.0,
        },
    )


ARCHITECTURES = (
    Architecture(
        "Z-Image",
        "ZImageTransformer2DModel",
        "ZImagePipeline",
        IMAGE,
        "batched",
        _z_image,
        _z_image_pipeline,
        lazy=True,
    ),
    Architecture(
        "Lumina 2",
        "Lumina2Transformer2DModel",
        "Lumina2Pipeline",
        IMAGE,
        "separate",
        _lumina2,
        _lumina2_pipeline,
        single_graph=False,
    ),
)
