"""Stable Video Diffusion XT at its real size with random weights: time and memory, no quality.

    ditcache compare ditcache.bench.compare.real_size:svd_xt --out out/svd-xt

Classes, sizes and number of steps are those of the released model, 25 frames of 576x1024 in 25
steps; the weights are drawn on the device from one seed. What a generation costs does not depend on
their values, what it shows does: nothing is judged, and quality columns stay empty. The denoiser
stands in for its distilled versions, too (M4 without guidance, M7 in four steps); M6 interpolates
by the small trained network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ditcache.models.tiny.video import INTERPOLATION_EMOJI, SVD_EMOJI
from ditcache.models.zoo_entries import ARCHITECTURES
from PIL import Image
from torch import nn

from .inputs import Sample
from .subjects import AS_IT_IS, Request, Subject

SEED, CALIBRATION_SEED = 0, 1_000_000
WHY = "random weights: time and memory only"
DECODED_TOGETHER = 8  # frames; all 25 at once take more memory than denoising them
_NO_GUIDANCE = {"max_guidance_scale": 1.0}


@dataclass(frozen=True)
class Parts:
    """Configurations of the networks, by diffusers' and transformers' names, and the size."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    image_encoder: Mapping[str, Any]
    height: int
    width: int


_SVD = ARCHITECTURES["svd-xt"]
SVD_XT = Parts(
    unet=_SVD.config,
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "layers_per_block": 2,
        "sample_size": 768,
    },
    # CLIP ViT-H/14, as laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
    image_encoder={
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    },
    height=_SVD.height,
    width=_SVD.width,
)


def svd_xt(request: Request) -> Subject:
    """Factory for `ditcache compare`: the pipeline, and one drawn picture with several seeds."""
    return subject(request, SVD_XT)


def subject(request: Request, parts: Parts) -> Subject:
    """A Stable Video Diffusion of these parts with random weights, which nobody judges."""
    image = Image.radial_gradient("L").convert("RGB")

    def sample(seed: int) -> Sample:
        return Sample(f"seed {seed}", seed, {"image": image}, image=image)

    return Subject(
        name="svd-xt, random weights",
        pipeline=pipeline(parts, torch.device(request.device), getattr(torch, request.dtype)),
        kind="image-to-video",
        samples=[sample(request.seed + i) for i in range(request.count)],
        calibration=[sample(CALIBRATION_SEED)],
        arguments={
            "height": parts.height,
            "width": parts.width,
            "num_frames": parts.unet["num_frames"],
            "decode_chunk_size": DECODED_TOGETHER,
        },
        steps=_SVD.steps,
        weights={
            "distilled": AS_IT_IS,
            "lcm": AS_IT_IS,
            "interpolation": str(INTERPOLATION_EMOJI),
        },
        schedulers={"lcm": str(SVD_EMOJI / "scheduler-4-steps")},
        arguments_with={"distilled": _NO_GUIDANCE, "lcm": _NO_GUIDANCE},
        unjudged=WHY,
    )


def pipeline(parts: Parts, device: torch.device, dtype: torch.dtype) -> Any:
    """Build diffusers' unmodified pipeline, every network made on the device."""
    import diffusers
    import transformers

    torch.manual_seed(SEED)
    with device:
        unet = diffusers.UNetSpatioTemporalConditionModel(**parts.unet)
        vae = diffusers.AutoencoderKLTemporalDecoder(**parts.vae)
        encoder = transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**parts.image_encoder)
        )
    networks: list[nn.Module] = [vae, encoder, unet]
    for network in networks:
        nn.Module.to(network, device, dtype).eval()
    return diffusers.StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=encoder,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            prediction_type="v_prediction",
            use_karras_sigmas=True,
            timestep_type="continuous",
            sigma_min=0.002,
            sigma_max=700.0,
            steps_offset=1,
        ),
        feature_extractor=transformers.CLIPImageProcessor(),
    )
