"""Pipelines that give the denoiser more than latents, time and text, or give it them otherwise.

Control and reference images, residuals of a ControlNet that follow the latents, SDXL's dictionary,
frames of a motion module, a loop without any condition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import ditcache
import pytest
import torch
from torch import Tensor, nn

from ..architectures.outside import planned_by_hand
from . import tiny_pipelines as tiny
from .observing import compiled, error, own_plan, same, steps_of, watched

Generate = Callable[[int], Tensor]
STEPS = 8


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


def parts(pipeline: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(pipeline, name, None) for name in names}


def runs(pipeline: Any, *, negative: bool = False, pooled: bool = False, **how: Any) -> Generate:
    def generate(seed: int) -> Tensor:
        given: dict[str, Any] = {"prompt_embeds": tiny.words(seed)}
        if pooled:
            given["pooled_prompt_embeds"] = tiny.pooled(seed)
        if negative:
            others = {"prompt_embeds": tiny.words(99), "pooled_prompt_embeds": tiny.pooled(99)}
            given |= {f"negative_{name}": others[name] for name in given}
        made = pipeline(
            **given,
            **how,
            height=tiny.SIDE,
            width=tiny.SIDE,
            num_inference_steps=STEPS,
            output_type="latent",
            generator=torch.Generator().manual_seed(seed),
        )
        return made.frames if hasattr(made, "frames") else made.images

    return generate


def at_work(side: nn.Module) -> nn.Module:
    """A side network that does something: its last layers are zero at first."""
    for parameter in side.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.2)
    return side.eval()


FLUX = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
SD = ("scheduler", "vae", "text_encoder", "tokenizer", "unet")


def sdxl() -> tuple[Any, Generate]:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=tiny.TEXT,
        attention_head_dim=(2, 4),
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + tiny.POOLED,
    )
    pipeline = diffusers.StableDiffusionXLPipeline(
        unet=unet.eval(),
        scheduler=diffusers.EulerDiscreteScheduler(**tiny.NOISE),
        vae=tiny.autoencoder(),
        add_watermarker=False,
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
    )
    return pipeline, runs(pipeline, negative=True, pooled=True, guidance_scale=3.0)


def stable_diffusion_controlnet() -> tuple[Any, Generate]:
    plain = tiny.stable_diffusion()
    side = diffusers.ControlNetModel.from_unet(
        plain.unet, conditioning_embedding_out_channels=(8, 8)
    )
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        controlnet=at_work(side),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts(plain, *SD),
    )
    how = {"image": tiny.picture(), "guidance_scale": 3.0}
    return pipeline, runs(pipeline, negative=True, **how)


def flux_controlnet() -> tuple[Any, Generate]:
    plain = tiny.flux()
    config = dict(plain.transformer.config) | {"num_single_layers": 1}
    names = diffusers.FluxControlNetModel._get_init_keys(diffusers.FluxControlNetModel)
    side = diffusers.FluxControlNetModel(**{k: v for k, v in config.items() if k in names})
    pipeline = diffusers.FluxControlNetPipeline(
        transformer=plain.transformer, controlnet=at_work(side), **parts(plain, *FLUX)
    )
    return pipeline, runs(pipeline, pooled=True, control_image=tiny.picture())


def flux_control() -> tuple[Any, Generate]:
    """The control image is in the latents' channels: the input has twice the output's."""
    transformer = tiny.flux_transformer(in_channels=32, out_channels=16)
    pipeline = diffusers.FluxControlPipeline(transformer=transformer, **parts(tiny.flux(), *FLUX))
    return pipeline, runs(pipeline, pooled=True, control_image=tiny.picture())


def flux_kontext() -> tuple[Any, Generate]:
    """The reference image is in the latents' tokens; the pipeline drops its part of the output."""
    plain = tiny.flux()
    pipeline = diffusers.FluxKontextPipeline(transformer=plain.transformer, **parts(plain, *FLUX))
    how = {"image": tiny.picture(), "max_area": tiny.SIDE**2, "_auto_resize": False}
    return pipeline, runs(pipeline, pooled=True, **how)


def animatediff() -> tuple[Any, Generate]:
    plain = tiny.stable_diffusion()
    motion = diffusers.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False, **tiny.NOISE)
    pipeline = diffusers.AnimateDiffPipeline(
        motion_adapter=motion, **(parts(plain, *SD) | {"scheduler": scheduler})
    )
    pipeline.unet.eval()
    return pipeline, runs(pipeline, negative=True, guidance_scale=3.0, num_frames=2)


def unconditional() -> tuple[Any, Generate]:
    """Latent diffusion without text. The scheduler clips, so that its first step goes far."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    decoder = diffusers.VQModel(latent_channels=3, block_out_channels=(32,))
    pipeline = diffusers.LDMPipeline(
        vqvae=decoder.eval(), unet=unet.eval(), scheduler=diffusers.DDIMScheduler()
    )

    def generate(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        made = pipeline(num_inference_steps=STEPS, output_type="np", generator=generator)
        return torch.from_numpy(made.images)

    return pipeline, generate


@pytest.mark.parametrize(
    "build",
    [
        sdxl,
        stable_diffusion_controlnet,
        flux_controlnet,
        flux_control,
        flux_kontext,
        animatediff,
        unconditional,
    ],
    ids=lambda build: build.__name__,
)
def test_side_inputs_are_recorded_once_then_planned(build):
    pipeline, generate = build()
    tiny.quiet(pipeline)
    plain = tiny.denoiser(pipeline)
    expected = [generate(seed) for seed in range(2)]
    made = compiled(pipeline, computed_steps=4, profile_generations=1)
    same(generate(0), expected[0])
    plan = own_plan(made)
    with watched(made) as calls:
        ours = generate(1)
    assert calls.computed == steps_of(plan)
    assert calls.total == 4
    summary = ditcache.summary(made)
    assert (summary.fallbacks, summary.uncached) == ({}, ())
    tiny.set_denoiser(pipeline, plain)
    with planned_by_hand(plain, plan, branches=1):
        assert error(ours, generate(1)) < 1e-5
    assert error(ours, expected[1]) > 1e-6, "the plan did nothing"
