"""Image transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .base import Architecture, Request, Sampler, flow_scheduler, into, noise, quiet

TEXT = 6  # tokens of a prompt; a negative prompt has four


def _side(request: Request, factor: int) -> dict[str, int]:
    """Height and width in pixels: four latent tokens by four, or six by four."""
    return {"height": factor * (6 if request.large else 4), "width": factor * 4}


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


def _flux_pipeline() -> Sampler:
    from diffusers import FluxPipeline

    pipe = quiet(FluxPipeline(flow_scheduler(shift=3.0), None, None, None, None, None, _flux()))
    return into(
        pipe,
        "transformer",
        lambda r: {
            **_side(r, 16),
            "prompt_embeds": noise(1, TEXT, 12),
            "pooled_prompt_embeds": noise(1, 8),
            "guidance_scale": 3.5,
        },
    )


def _flux_true_cfg_pipeline() -> Sampler:
    from diffusers import FluxPipeline

    pipe = quiet(FluxPipeline(flow_scheduler(shift=3.0), None, None, None, None, None, _flux()))
    return into(
        pipe,
        "transformer",
        lambda r: {
            **_side(r, 16),
            "prompt_embeds": noise(1, TEXT, 12),
            "pooled_prompt_embeds": noise(1, 8),
            "negative_prompt_embeds": noise(1, TEXT, 12, seed=8),
            "negative_pooled_prompt_embeds": noise(1, 8, seed=8),
            "true_cfg_scale": 2.0,
        },
    )


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

    pipe = quiet(Flux2Pipeline(flow_scheduler(shift=3.0), None, None, None, _flux2()))
    return into(
        pipe,
        "transformer",
        lambda r: {**_side(r, 16), "prompt_embeds": noise(1, TEXT, 12), "guidance_scale": 4.0},
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
    pipe = quiet(DiTPipeline(_dit(), vae, DDIMScheduler(clip_sample=False)))

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

    pipe = quiet(
        StableDiffusion3Pipeline(
            _sd3(), flow_scheduler(shift=3.0), None, None, None, None, None, None, None
        )
    )
    return into(
        pipe,
        "transformer",
        lambda r: {
            **_side(r, 16),
            "prompt_embeds": noise(1, TEXT, 12),
            "pooled_prompt_embeds": noise(1, 8),
            "negative_prompt_embeds": noise(1, TEXT, 12, seed=8),
            "negative_pooled_prompt_embeds": noise(1, 8, seed=8),
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


def _masks(length: int = TEXT) -> dict[str, Any]:
    """Prompts of one padded length with masks, as T5 makes them."""
    mask = torch.ones(1, length, dtype=torch.long)
    short = mask.clone()
    short[:, length // 2 :] = 0
    return {"prompt_attention_mask": mask, "negative_prompt_attention_mask": short}


def _pixart_pipeline() -> Sampler:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline

    pipe = quiet(PixArtSigmaPipeline(None, None, None, _pixart(), DPMSolverMultistepScheduler()))
    return into(
        pipe,
        "transformer",
        lambda r: {
            **_side(r, 16),
            **_masks(),
            "negative_prompt": None,
            "prompt_embeds": noise(1, TEXT, 12),
            "negative_prompt_embeds": noise(1, TEXT, 12, seed=8),
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

    pipe = quiet(SanaPipeline(None, None, None, _sana(), flow_scheduler(shift=3.0)))
    return into(
        pipe,
        "transformer",
        lambda r: {
            **_side(r, 32),
            **_masks(),
            "negative_prompt": None,
            "prompt_embeds": noise(1, TEXT, 12),
            "negative_prompt_embeds": noise(1, TEXT, 12, seed=8),
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

    pipe = quiet(QwenImagePipeline(flow_scheduler(shift=3.0), None, None, None, _qwen()))
    return into(
        pipe,
        "transformer",
        lambda r: {
            **_side(r, 16),
            "prompt_embeds": noise(1, TEXT, 12),
            "prompt_embeds_mask": torch.ones(1, TEXT, dtype=torch.long),
            "negative_prompt_embeds": noise(1, 4, 12, seed=8),  # a prompt has its own length
            "negative_prompt_embeds_mask": torch.ones(1, 4, dtype=torch.long),
            "true_cfg_scale": 4.0,
        },
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

    pipe = quiet(ZImagePipeline(flow_scheduler(shift=3.0), None, None, None, _z_image()))
    return into(
        pipe,
        "transformer",
        lambda r: {
            **_side(r, 16),
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

    pipe = quiet(Lumina2Pipeline(_lumina2(), flow_scheduler(shift=3.0), None, None, None))
    return into(
        pipe,
        "transformer",
        lambda r: {
            **_side(r, 16),
            **{k: v.bool() for k, v in _masks().items()},
            "prompt_embeds": noise(1, TEXT, 12),
            "negative_prompt_embeds": noise(1, TEXT, 12, seed=8),
            "guidance_scale": 4.0,
        },
    )


FLUX = "FluxTransformer2DModel"
IMAGE = "image transformer"
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
