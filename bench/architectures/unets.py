"""UNets: latent diffusion for images, with and without text, and Stable Video Diffusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Architecture, Request, Sampler, image_encoder, into, noise, picture, pipeline


def _unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
    )


def _unet_pipeline() -> Sampler:
    """The unconditional pipelines' loop: they themselves have one size and no latent output."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False)

    def sample(model: nn.Module, request: Request) -> Tensor:
        scheduler.set_timesteps(request.steps)
        side = 24 if request.large else 16
        x = torch.randn(1, 3, side, 16, generator=request.generator)
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(model(x, t).sample, int(t), x, return_dict=False)[0]
        return x

    return sample


def _unet_text() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def _unet_text_pipeline() -> Sampler:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = pipeline(
        StableDiffusionPipeline,
        unet=_unet_text(),
        scheduler=DPMSolverMultistepScheduler(steps_offset=1),
        requires_safety_checker=False,
    )
    return into(
        pipe,
        "unet",
        lambda r: {
            "height": 96 if r.large else 64,
            "width": 64,
            "prompt_embeds": noise(1, 6, 12),
            "negative_prompt_embeds": noise(1, 6, 12, seed=8),
            "guidance_scale": 5.0,
        },
    )


def _svd() -> nn.Module:
    from diffusers import UNetSpatioTemporalConditionModel

    return UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 32),
        down_block_types=(
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "DownBlockSpatioTemporal",
        ),
        up_block_types=(
            "UpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
        ),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=12,
        num_attention_heads=(2, 2, 2),
        num_frames=3,
    )


def _svd_pipeline() -> Sampler:
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
    )

    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        block_out_channels=(32, 32),  # pyright: ignore[reportArgumentType]
        latent_channels=4,
    )  # both are annotated as tuples of one
    scheduler = EulerDiscreteScheduler(
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        timestep_type="continuous",
        timestep_spacing="leading",
        sigma_min=0.002,
        sigma_max=700.0,
    )
    encoder, processor = image_encoder(12)
    pipe = pipeline(
        StableVideoDiffusionPipeline,
        vae=vae.eval(),
        image_encoder=encoder,
        unet=_svd(),
        scheduler=scheduler,
        feature_extractor=processor,
    )
    return into(
        pipe,
        "unet",
        lambda r: {
            "image": picture(32, 32),
            "height": 24 if r.large else 16,
            "width": 16,
            "num_frames": 3,
        },
    )


ARCHITECTURES = (
    Architecture(
        "UNet, unconditional",
        "UNet2DModel",
        "DDIM loop",
        "image UNet",
        "none",
        _unet,
        _unet_pipeline,
    ),
    Architecture(
        "UNet, Stable Diffusion",
        "UNet2DConditionModel",
        "StableDiffusionPipeline",
        "image UNet",
        "batched",
        _unet_text,
        _unet_text_pipeline,
    ),
    Architecture(
        "Stable Video Diffusion",
        "UNetSpatioTemporalConditionModel",
        "StableVideoDiffusionPipeline",
        "video UNet",
        "batched",
        _svd,
        _svd_pipeline,
    ),
)
