"""diffusers' own pipelines around tiny models with random weights; prompts are embeddings."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor

SIDE = 16  # pixels; the autoencoder halves them once
TEXT = 12  # width of the prompt embeddings
POOLED = 8


def autoencoder() -> Any:
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
        scaling_factor=1.0,
        sample_size=SIDE,
    ).eval()


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux_transformer(**changes: Any) -> Any:
    config = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT,
        "pooled_projection_dim": POOLED,
        "axes_dims_rope": (2, 2, 4),
        "guidance_embeds": False,
    }
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(**(config | changes)).eval()


def flux(cls: Any = None, **changes: Any) -> Any:
    """Flux: true guidance in two calls a step, branches named by the pipeline."""
    cls = diffusers.FluxPipeline if cls is None else cls
    return quiet(
        cls(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=autoencoder(),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=flux_transformer(**changes),
        )
    )


def sd3(cls: Any = None) -> Any:
    """SD3: both guidance branches in one call, and skip-layer guidance in a second one."""
    cls = diffusers.StableDiffusion3Pipeline if cls is None else cls
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        caption_projection_dim=16,
        pooled_projection_dim=POOLED,
        out_channels=4,
        pos_embed_max_size=32,
    ).eval()
    return quiet(
        cls(
            transformer=transformer,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=autoencoder(),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            text_encoder_3=None,
            tokenizer_3=None,
        )
    )


def stable_diffusion(cls: Any = None, scheduler: Any = None, in_channels: int = 4) -> Any:
    """Stable Diffusion: a UNet that predicts noise, both branches in one call, any scheduler."""
    cls = diffusers.StableDiffusionPipeline if cls is None else cls
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 2,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()
    return quiet(
        cls(
            vae=autoencoder(),
            text_encoder=None,
            tokenizer=None,
            unet=unet,
            scheduler=diffusers.DDIMScheduler(**NOISE) if scheduler is None else scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


# Stable Diffusion's noise schedule, for whichever scheduler goes with it.
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def words(seed: int, batch: int = 1, length: int = 5) -> Tensor:
    g = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(batch, length, TEXT, generator=g)


def pooled(seed: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, POOLED, generator=torch.Generator().manual_seed(2000 + seed))


def picture(seed: int = 0) -> Tensor:
    """[1, 3, SIDE, SIDE] in [0, 1], smooth enough to be one."""
    g = torch.Generator().manual_seed(3000 + seed)
    small = torch.rand(1, 3, 4, 4, generator=g)
    return torch.nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear")


def half_mask() -> Tensor:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., SIDE // 2 :] = 1.0
    return mask


def generate(
    pipeline: Any, seed: int = 0, *, batch: int = 1, length: int = 5, **how: Any
) -> Tensor:
    """One whole generation through the pipeline; gives the final latents.

    `how` goes to the pipeline. `true_cfg_scale` (Flux) and `guidance_scale` (others) default to 2.
    """
    named = type(pipeline).__name__
    dtype = denoiser(pipeline).dtype
    embeds = {
        "prompt_embeds": words(seed, batch, length),
        "negative_prompt_embeds": words(99, batch, length),
    }
    if named.startswith(("Flux", "StableDiffusion3")):
        embeds["pooled_prompt_embeds"] = pooled(seed, batch)
        embeds["negative_pooled_prompt_embeds"] = pooled(99, batch)
    scale = "true_cfg_scale" if named.startswith("Flux") else "guidance_scale"
    settings: dict[str, Any] = {scale: 2.0, "num_inference_steps": 8, "output_type": "latent"}
    settings |= {"generator": torch.Generator().manual_seed(seed), "height": SIDE, "width": SIDE}
    settings |= {k: v.to(dtype) for k, v in embeds.items()}
    return pipeline(**(settings | how)).images


def denoiser(pipeline: Any) -> Any:
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def set_denoiser(pipeline: Any, model: Any) -> None:
    setattr(pipeline, "unet" if hasattr(pipeline, "unet") else "transformer", model)


def flux_inputs(t: float = 1.0, side: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of one call of the Flux transformer."""
    ids = torch.zeros(side * side, 3)
    ids[:, 1], ids[:, 2] = torch.arange(side * side) // side, torch.arange(side * side) % side
    noise = torch.randn(1, side * side, 16, generator=torch.Generator().manual_seed(seed))
    return {
        "hidden_states": noise,
        "encoder_hidden_states": words(seed),
        "pooled_projections": pooled(seed),
        "timestep": torch.full((1,), t),
        "img_ids": ids,
        "txt_ids": torch.zeros(5, 3),
    }
