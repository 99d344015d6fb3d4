"""Wan: text- and image-to-video, tokens with timesteps of their own, and two models in turn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import (
    VIDEO,
    Architecture,
    Request,
    Sampler,
    image_encoder,
    into,
    picture,
    pipeline,
    prompts,
    side,
)

FRAMES = 5  # two latent frames, since time is compressed by four


def _wan(**changes: Any) -> nn.Module:
    from diffusers import WanTransformer3DModel

    config: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 12,
        "freq_dim": 16,
        "ffn_dim": 24,
        "num_layers": 3,
        "rope_max_seq_len": 32,
    }
    return WanTransformer3DModel(**(config | changes))


def _unipc() -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def _wan_prompts() -> dict[str, Any]:
    return {
        **prompts(),
        "num_frames": FRAMES,
        "guidance_scale": 4.0,
    }


def _wan_pipeline() -> Sampler:
    from diffusers import WanPipeline

    pipe = pipeline(WanPipeline, scheduler=_unipc(), transformer=_wan())
    return into(pipe, "transformer", lambda r: {**side(r), **_wan_prompts()})


def _wan_vae() -> nn.Module:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        temperal_downsample=[False, True, True],
    ).eval()


def _wan_image() -> nn.Module:
    # Noise, mask and the first frame's latents side by side; the image by its features as well.
    return _wan(in_channels=4 + 4 + 4, image_dim=8, added_kv_proj_dim=24, pos_embed_seq_len=None)


def _wan_image_pipeline() -> Sampler:
    from diffusers import WanImageToVideoPipeline

    encoder, processor = image_encoder(8)
    pipe = pipeline(
        WanImageToVideoPipeline,
        vae=_wan_vae(),
        scheduler=_unipc(),
        image_processor=processor,
        image_encoder=encoder,
        transformer=_wan_image(),
    )
    return into(
        pipe,
        "transformer",
        lambda r: {**side(r), **_wan_prompts(), "image": picture(*side(r).values())},
    )


def _wan_ti2v_pipeline() -> Sampler:
    """Wan 2.2 5B: each token has a timestep of its own, zero in the given first frame."""
    from diffusers import WanImageToVideoPipeline

    pipe = pipeline(
        WanImageToVideoPipeline,
        vae=_wan_vae(),
        scheduler=_unipc(),
        transformer=_wan(),
        expand_timesteps=True,
    )
    return into(
        pipe,
        "transformer",
        lambda r: {**side(r), **_wan_prompts(), "image": picture(*side(r).values())},
    )


WAN = "WanTransformer3DModel"
ARCHITECTURES = (
    Architecture("Wan 2.1 T2V", WAN, "WanPipeline", VIDEO, "separate", _wan, _wan_pipeline),
    Architecture(
        "Wan 2.1 I2V",
        WAN,
        "WanImageToVideoPipeline",
        VIDEO,
        "separate",
        _wan_image,
        _wan_image_pipeline,
    ),
    Architecture(
        "Wan 2.2 TI2V",
        WAN,
        "WanImageToVideoPipeline",
        VIDEO,
        "separate",
        _wan,
        _wan_ti2v_pipeline,
    ),
)


def wan_pair() -> nn.Module:
    """The two transformers of Wan 2.2, `high` and `low`, with different random weights."""
    pair = nn.Module()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pair.high, pair.low = _wan(), _wan()
    return pair.requires_grad_(False).eval()


def wan_switch() -> Sampler:
    """Wan 2.2: one transformer for the noisy steps, the other for the rest.

    What is sampled is a pair, so that either may be compiled.
    """
    from diffusers import WanPipeline

    pipe = pipeline(
        WanPipeline,
        scheduler=_unipc(),
        transformer=_wan(),
        transformer_2=_wan(),
        boundary_ratio=0.8,
    )

    def sample(pair: nn.Module, request: Request) -> Tensor:
        pipe.transformer, pipe.transformer_2 = pair.high, pair.low
        with torch.no_grad():
            return pipe(
                **side(request),
                **_wan_prompts(),
                guidance_scale_2=3.0,
                num_inference_steps=request.steps,
                generator=request.generator,
                output_type="latent",
                return_dict=False,
            )[0]

    return sample
