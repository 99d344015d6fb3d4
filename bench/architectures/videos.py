"""Other video transformers."""

from __future__ import annotations

import torch
from torch import nn

from .base import (
    TEXT,
    VIDEO,
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

FRAMES = 5  # two latent frames where time is compressed by four


def _ltx() -> nn.Module:
    from diffusers import LTXVideoTransformer3DModel

    return LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=3,
        caption_channels=12,
    )


def _ltx_pipeline() -> Sampler:
    from diffusers import LTXPipeline

    scheduler = flow_scheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    pipe = pipeline(LTXPipeline, scheduler=scheduler, transformer=_ltx())
    return into(
        pipe,
        "transformer",
        lambda r: {
            **side(r, 32),
            "num_frames": 9,
            **prompts(),
            **masks(),
            "guidance_scale": 3.0,
        },
    )


def _hunyuan() -> nn.Module:
    from diffusers import HunyuanVideoTransformer3DModel

    return HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=12,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )


def _hunyuan_pipeline() -> Sampler:
    from diffusers import HunyuanVideoPipeline

    pipe = pipeline(
        HunyuanVideoPipeline, transformer=_hunyuan(), scheduler=flow_scheduler(shift=7.0)
    )
    mask = torch.ones(1, TEXT, dtype=torch.long)
    mask[:, TEXT - 2 :] = 0
    return into(
        pipe,
        "transformer",
        lambda r: {
            **side(r),
            "num_frames": FRAMES,
            **prompts(pooled=True, negative=False),
            "prompt_attention_mask": mask,
            "guidance_scale": 6.0,
        },
    )


def _cogvideo() -> nn.Module:
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=12,
        num_layers=3,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=TEXT,
        use_rotary_positional_embeddings=True,
    )


def _cogvideo_pipeline() -> Sampler:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

    pipe = pipeline(CogVideoXPipeline, transformer=_cogvideo(), scheduler=CogVideoXDDIMScheduler())
    return into(
        pipe,
        "transformer",
        lambda r: {
            **side(r),
            "num_frames": FRAMES,
            **prompts(),
            "guidance_scale": 6.0,
        },
    )


def _kandinsky() -> nn.Module:
    from diffusers import Kandinsky5Transformer3DModel

    return Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=12,
        in_text_dim2=8,
        time_dim=16,
        out_visual_dim=4,
        patch_size=(1, 2, 2),
        model_dim=32,
        ff_dim=48,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(4, 6, 6),
    )


def _kandinsky_pipeline() -> Sampler:
    from diffusers import Kandinsky5T2VPipeline

    pipe = pipeline(
        Kandinsky5T2VPipeline, transformer=_kandinsky(), scheduler=flow_scheduler(shift=5.0)
    )
    return into(
        pipe,
        "transformer",
        lambda r: {
            **side(r),
            "num_frames": FRAMES,
            "prompt_embeds_qwen": noise(1, TEXT, 12),
            "prompt_embeds_clip": noise(1, 8),
            "prompt_cu_seqlens": torch.tensor([0, TEXT], dtype=torch.int32),
            "negative_prompt_embeds_qwen": noise(1, 4, 12, seed=8),
            "negative_prompt_embeds_clip": noise(1, 8, seed=8),
            "negative_prompt_cu_seqlens": torch.tensor([0, 4], dtype=torch.int32),
            "guidance_scale": 5.0,
        },
    )


ARCHITECTURES = (
    Architecture(
        "LTX", "LTXVideoTransformer3DModel", "LTXPipeline", VIDEO, "batched", _ltx, _ltx_pipeline
    ),
    Architecture(
        "HunyuanVideo",
        "HunyuanVideoTransformer3DModel",
        "HunyuanVideoPipeline",
        VIDEO,
        "embedded",
        _hunyuan,
        _hunyuan_pipeline,
    ),
    Architecture(
        "CogVideoX",
        "CogVideoXTransformer3DModel",
        "CogVideoXPipeline",
        VIDEO,
        "batched",
        _cogvideo,
        _cogvideo_pipeline,
    ),
    Architecture(
        "Kandinsky 5",
        "Kandinsky5Transformer3DModel",
        "Kandinsky5T2VPipeline",
        VIDEO,
        "separate",
        _kandinsky,
        _kandinsky_pipeline,
    ),
)
