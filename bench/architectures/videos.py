"""Video transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import (
    Architecture,
    Request,
    Sampler,
    flow_scheduler,
    image_encoder,
    into,
    noise,
    picture,
    quiet,
)

TEXT = 6  # tokens of a prompt
FRAMES = 5  # two latent frames where time is compressed by four


def _side(request: Request, factor: int = 16) -> dict[str, int]:
    """Height and width in pixels: four latent tokens by four, or six by four."""
    return {"height": factor * (6 if request.large else 4), "width": factor * 4}


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
        "prompt_embeds": noise(1, TEXT, 12),
        "negative_prompt_embeds": noise(1, TEXT, 12, seed=8),
        "num_frames": FRAMES,
        "guidance_scale": 4.0,
    }


def _wan_pipeline() -> Sampler:
    from diffusers import WanPipeline

    pipe = quiet(WanPipeline(None, None, None, _unipc(), _wan()))
    return into(pipe, "transformer", lambda r: {**_side(r), **_wan_prompts()})


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
    pipe = quiet(
        WanImageToVideoPipeline(
            None, None, _wan_vae(), _unipc(), processor, encoder, transformer=_wan_image()
        )
    )
    return into(
        pipe,
        "transformer",
        lambda r: {**_side(r), **_wan_prompts(), "image": picture(*_side(r).values())},
    )


def _wan_ti2v_pipeline() -> Sampler:
    """Wan 2.2 5B: each token has a timestep of its own, zero in the given first frame."""
    from diffusers import WanImageToVideoPipeline

    pipe = quiet(
        WanImageToVideoPipeline(
            None, None, _wan_vae(), _unipc(), transformer=_wan(), expand_timesteps=True
        )
    )
    return into(
        pipe,
        "transformer",
        lambda r: {**_side(r), **_wan_prompts(), "image": picture(*_side(r).values())},
    )


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
    pipe = quiet(LTXPipeline(scheduler, None, None, None, _ltx()))
    mask = torch.ones(1, TEXT, dtype=torch.long)
    short = mask.clone()
    short[:, TEXT // 2 :] = 0
    return into(
        pipe,
        "transformer",
        lambda r: {
            **_side(r, 32),
            "num_frames": 9,
            "prompt_embeds": noise(1, TEXT, 12),
            "prompt_attention_mask": mask,
            "negative_prompt_embeds": noise(1, TEXT, 12, seed=8),
            "negative_prompt_attention_mask": short,
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

    pipe = quiet(
        HunyuanVideoPipeline(None, None, _hunyuan(), None, flow_scheduler(shift=7.0), None, None)
    )
    mask = torch.ones(1, TEXT, dtype=torch.long)
    mask[:, TEXT - 2 :] = 0
    return into(
        pipe,
        "transformer",
        lambda r: {
            **_side(r),
            "num_frames": FRAMES,
            "prompt_embeds": noise(1, TEXT, 12),
            "pooled_prompt_embeds": noise(1, 8),
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

    pipe = quiet(CogVideoXPipeline(None, None, None, _cogvideo(), CogVideoXDDIMScheduler()))
    return into(
        pipe,
        "transformer",
        lambda r: {
            **_side(r),
            "num_frames": FRAMES,
            "prompt_embeds": noise(1, TEXT, 12),
            "negative_prompt_embeds": noise(1, TEXT, 12, seed=8),
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

    pipe = quiet(
        Kandinsky5T2VPipeline(_kandinsky(), None, None, None, None, None, flow_scheduler(shift=5.0))
    )
    return into(
        pipe,
        "transformer",
        lambda r: {
            **_side(r),
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


WAN = "WanTransformer3DModel"
VIDEO = "video transformer"
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

    pipe = quiet(WanPipeline(None, None, None, _unipc(), _wan(), _wan(), boundary_ratio=0.8))

    def sample(pair: nn.Module, request: Request) -> Tensor:
        pipe.transformer, pipe.transformer_2 = pair.high, pair.low
        with torch.no_grad():
            return pipe(
                **_side(request),
                **_wan_prompts(),
                guidance_scale_2=3.0,
                num_inference_steps=request.steps,
                generator=request.generator,
                output_type="latent",
                return_dict=False,
            )[0]

    return sample
