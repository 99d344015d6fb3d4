"""Other image transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .base import (
    IMAGE,
    TEXT,
    Architecture,
    Request,
    Sampler,
    flow_scheduler,
    into,
    masks,
    noise,
    pipeline,
    prompts,
    side,
)


def _dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )


def _dit_pipeline() -> Sampler:
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4).eval()
    scheduler = DDIMScheduler(clip_sample=False)
    pipe = pipeline(DiTPipeline, transformer=_dit(), vae=vae, scheduler=scheduler)

    def call(request: Request) -> dict[str, Any]:
        # This pipeline gives decoded pictures only, and one size: a larger batch stands for it.
        labels = [1, 207, 3] if request.large else [1]
        return {"class_labels": labels, "guidance_scale": 4.0, "output_type": "pt"}

    return into(pipe, "transformer", call)


def _sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def _sd3_pipeline() -> Sampler:
    from diffusers import StableDiffusion3Pipeline

    pipe = pipeline(
        StableDiffusion3Pipeline, transformer=_sd3(), scheduler=flow_scheduler(shift=3.0)
    )
    return into(
        pipe,
        "transformer",
        lambda r: {
            **side(r),
            **prompts(pooled=True),
            "guidance_scale": 4.0,
        },
    )


def _pixart() -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        caption_channels=12,
        use_additional_conditions=False,
    )


def _pixart_pipeline() -> Sampler:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline

    scheduler = DPMSolverMultistepScheduler()
    pipe = pipeline(PixArtSigmaPipeline, transformer=_pixart(), scheduler=scheduler)
    return into(
        pipe,
        "transformer",
        lambda r: {
            **side(r),
            **masks(),
            "negative_prompt": None,
            **prompts(),
            "guidance_scale": 4.5,
            "use_resolution_binning": False,
        },
    )


def _sana() -> nn.Module:
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=8,
    )


def _sana_pipeline() -> Sampler:
    from diffusers import SanaPipeline

    pipe = pipeline(SanaPipeline, transformer=_sana(), scheduler=flow_scheduler(shift=3.0))
    return into(
        pipe,
        "transformer",
        lambda r: {
            **side(r, 32),
            **masks(),
            "negative_prompt": None,
            **prompts(),
            "guidance_scale": 4.5,
            "use_resolution_binning": False,
        },
    )


def _qwen() -> nn.Module:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(4, 6, 6),
    )


def _qwen_pipeline() -> Sampler:
    from diffusers import QwenImagePipeline

    pipe = pipeline(QwenImagePipeline, scheduler=flow_scheduler(shift=3.0), transformer=_qwen())
    return into(
        pipe,
        "transformer",
        lambda r: {
            **side(r),
            "prompt_embeds": noise(1, TEXT, 12),
            "prompt_embeds_mask": torch.ones(1, TEXT, dtype=torch.long),
            "negative_prompt_embeds": noise(1, 4, 12, seed=8),  # a prompt has its own length
            "negative_prompt_embeds_mask": torch.ones(1, 4, dtype=torch.long),
            "true_cfg_scale": 4.0,
        },
    )


ARCHITECTURES = (
    Architecture(
        "DiT",
        "DiTTransformer2DModel",
        "DiTPipeline",
        IMAGE,
        "batched",
        _dit,
        _dit_pipeline,
        sizes=False,
    ),
    Architecture(
        "Stable Diffusion 3",
        "SD3Transformer2DModel",
        "StableDiffusion3Pipeline",
        IMAGE,
        "batched",
        _sd3,
        _sd3_pipeline,
    ),
    Architecture(
        "PixArt Sigma",
        "PixArtTransformer2DModel",
        "PixArtSigmaPipeline",
        IMAGE,
        "batched",
        _pixart,
        _pixart_pipeline,
    ),
    Architecture(
        "Sana", "SanaTransformer2DModel", "SanaPipeline", IMAGE, "batched", _sana, _sana_pipeline
    ),
    Architecture(
        "Qwen-Image",
        "QwenImageTransformer2DModel",
        "QwenImagePipeline",
        IMAGE,
        "separate",
        _qwen,
        _qwen_pipeline,
    ),
)
