"""The table behind the zoo: one entry per architecture.

Each configuration names where it was read; "conversion script" means the script of that name in
the folder `scripts` of huggingface/diffusers, which writes the published `config.json`. Arguments
left out have the class's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from . import zoo_inputs
from .zoo_inputs import Inputs


@dataclass(frozen=True)
class Architecture:
    """One entry: how to build a model and call it once.

    Attributes:
        cls: name of the class in diffusers.
        config: arguments of its constructor that differ from, or confirm, the defaults.
        inputs: size -> keyword arguments of one forward call.
        height, width, frames: default size in pixels and frames; frames 1 means still images.
        multiple: height and width must be multiples of it.
        frame_multiple: frames - 1 must be a multiple of it (0: any number).
        square: only height = width works.
        guidance: "embedded" (an input), "separate" (two calls a step), "batched" (one call with
            twice the rows), "none".
        steps: the pipeline's default number of steps.
        source: where the configuration was read.

    """

    cls: str
    config: Mapping[str, Any]
    inputs: Inputs
    height: int
    width: int
    multiple: int
    guidance: Literal["embedded", "separate", "batched", "none"]
    steps: int
    source: str
    frames: int = 1
    frame_multiple: int = 0
    square: bool = False


_FLUX_DEV = Architecture(
    cls="FluxTransformer2DModel",
    config={"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},
    inputs=zoo_inputs.flux(guidance=True),
    height=1024,
    width=1024,
    multiple=16,
    guidance="embedded",
    steps=50,
    source="conversion script convert_flux_to_diffusers.py: the class's defaults",
)
_WAN_14B = Architecture(
    cls="WanTransformer3DModel",
    config={"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824},
    inputs=zoo_inputs.wan,
    height=480,
    width=832,
    frames=81,
    multiple=16,
    frame_multiple=4,
    guidance="separate",
    steps=50,
    source="conversion script convert_wan_to_diffusers.py, Wan-T2V-1.3B and Wan-T2V-14B",
)

ARCHITECTURES: dict[str, Architecture] = {
    "flux-dev": _FLUX_DEV,
    "flux-schnell": replace(
        _FLUX_DEV,
        config={"num_layers": 19, "num_single_layers": 38, "guidance_embeds": False},
        # The card of FLUX.1-schnell asks for max_sequence_length=256 and four steps.
        inputs=zoo_inputs.flux(guidance=False, text=(256, 4096)),
        guidance="none",
        steps=4,
    ),
    "wan2.1-1.3b": replace(
        _WAN_14B, config={"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
    ),
    "wan2.1-14b": _WAN_14B,
    "sd3.5-large": Architecture(
        cls="SD3Transformer2DModel",
        config={
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
        inputs=zoo_inputs.sd3,
        height=1024,
        width=1024,
        multiple=16,
        guidance="batched",
        steps=28,
        source="conversion script convert_sd3_to_diffusers.py (as many heads as layers, 192 "
        "positions for the 8B model); 38 layers as in the release; 8.06B parameters agree with it",
    ),
    "dit-xl-2": Architecture(
        cls="DiTTransformer2DModel",
        config={"num_layers": 28, "sample_size": 32, "out_channels": 8},
        inputs=zoo_inputs.dit(channels=4, factor=8),
        height=256,
        width=256,
        multiple=16,
        square=True,
        guidance="batched",
        steps=50,
        source="conversion script convert_dit_to_diffusers.py, which copies the timestep and class "
        "embedders (2.78M parameters) into each of the 28 blocks: 750M here, 675M as published",
    ),
    "svd-xt": Architecture(
        cls="UNetSpatioTemporalConditionModel",
        config={"sample_size": 96, "num_attention_heads": (5, 10, 20, 20), "num_frames": 25},
        inputs=zoo_inputs.svd,
        height=576,
        width=1024,
        frames=25,
        multiple=64,
        guidance="batched",
        steps=25,
        source="the class's defaults, 25 frames as in XT; 1.52B parameters agree with the release",
    ),
    "qwen-image": Architecture(
        cls="QwenImageTransformer2DModel",
        config={"num_layers": 60, "num_attention_heads": 24},
        inputs=zoo_inputs.qwen_image,
        height=1024,
        width=1024,
        multiple=16,
        guidance="separate",
        steps=50,
        source="the class's defaults (60 blocks, 24 heads of 128); 20.4B parameters agree with the "
        "release",
    ),
    "pixart-sigma": Architecture(
        cls="PixArtTransformer2DModel",
        config={
            "sample_size": 128,
            "out_channels": 8,
            "caption_channels": 4096,
            "interpolation_scale": 2,
            "use_additional_conditions": False,
        },
        inputs=zoo_inputs.pixart,
        height=1024,
        width=1024,
        multiple=16,
        guidance="batched",
        steps=20,
        source="conversion script convert_pixart_sigma_to_diffusers.py, 1024 pixels",
    ),
    "sana-1.6b": Architecture(
        cls="SanaTransformer2DModel",
        config={"num_layers": 20, "num_attention_heads": 70, "sample_size": 32},
        inputs=zoo_inputs.sana,
        height=1024,
        width=1024,
        multiple=32,
        guidance="batched",
        steps=20,
        source="conversion script convert_sana_to_diffusers.py, SanaMS_1600M_P1_D20, 1024 pixels",
    ),
    "hunyuan-video": Architecture(
        cls="HunyuanVideoTransformer3DModel",
        config={"num_layers": 20, "num_single_layers": 40, "guidance_embeds": True},
        inputs=zoo_inputs.hunyuan_video,
        height=720,
        width=1280,
        frames=129,
        multiple=16,
        frame_multiple=4,
        guidance="embedded",
        steps=50,
        source="conversion script convert_hunyuan_video_to_diffusers.py, HYVideo-T/2-cfgdistill",
    ),
    "ltx": Architecture(
        cls="LTXVideoTransformer3DModel",
        config={"num_layers": 28, "num_attention_heads": 32, "attention_head_dim": 64},
        inputs=zoo_inputs.ltx,
        height=512,
        width=704,
        frames=161,
        multiple=32,
        frame_multiple=8,
        guidance="batched",
        steps=50,
        source="conversion script convert_ltx_to_diffusers.py, the 2B model (before 0.9.7)",
    ),
    "flux-emoji": Architecture(
        cls="FluxTransformer2DModel",
        config={
            "in_channels": 24,
            "num_layers": 4,
            "num_single_layers": 8,
            "attention_head_dim": 32,
            "num_attention_heads": 5,
            "joint_attention_dim": 384,
            "pooled_projection_dim": 384,
            "axes_dims_rope": (8, 12, 12),
        },
        inputs=zoo_inputs.flux(patch=8, channels=24, text=(16, 384), pooled=384, guidance=False),
        height=64,
        width=64,
        multiple=8,
        guidance="separate",
        steps=50,
        source="trained here, see models/tiny/flux-emoji",
    ),
    "dit-digits": Architecture(
        cls="DiTTransformer2DModel",
        config={
            "num_attention_heads": 3,
            "attention_head_dim": 32,
            "in_channels": 1,
            "out_channels": 1,
            "num_layers": 8,
            "sample_size": 8,
            "patch_size": 1,
            "num_embeds_ada_norm": 10,
        },
        inputs=zoo_inputs.dit(channels=1, factor=1),
        height=8,
        width=8,
        multiple=1,
        square=True,
        guidance="batched",
        steps=50,
        source="trained here, see models/tiny/dit-digits",
    ),
}
