"""Random-weight video pipelines of a few thousand parameters, by diffusers' own classes."""

from __future__ import annotations

import torch
from ditcache.bench.compare.inputs import Sample
from ditcache.bench.compare.real_size import Parts, subject
from ditcache.bench.compare.subjects import Request, Subject
from PIL import Image

SIDE, FRAMES, STEPS = 32, 5, 4


def svd_pipeline():
    """Image to video: StableVideoDiffusionPipeline."""
    import diffusers
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=SIDE,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32,
        num_attention_heads=8,
        num_frames=FRAMES,
        projection_class_embeddings_input_dim=96,
        addition_time_embed_dim=32,
    )
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        latent_channels=4,
    )
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            projection_dim=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=32,
            intermediate_size=37,
            patch_size=8,
        )
    )
    # The pipeline encodes 224 pixels: positions are interpolated by nobody, so they must fit.
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(**(encoder.config.to_dict() | {"image_size": 224, "patch_size": 32}))
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction", use_karras_sigmas=True, timestep_type="continuous"
    )
    made = diffusers.StableVideoDiffusionPipeline(
        vae=vae.eval(),
        image_encoder=encoder.eval(),
        unet=unet.eval(),
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
    )
    made.set_progress_bar_config(disable=True)
    return made


def svd(request: Request) -> Subject:
    """Give it three pictures."""
    images = [Image.radial_gradient("L").resize((SIDE, SIDE)).convert("RGB") for _ in range(3)]
    return Subject(
        name="tiny-svd",
        pipeline=svd_pipeline(),
        kind="image-to-video",
        samples=[
            Sample(f"picture {i}", request.seed + i, {"image": image}, image=image)
            for i, image in enumerate(images)
        ][: request.count],
        arguments={"height": SIDE, "width": SIDE, "num_frames": FRAMES},
        steps=STEPS,
    )


def real_size(request: Request) -> Subject:
    """What is measured at real size, of a few thousand parameters."""
    blocks = {"block_out_channels": (32, 64), "layers_per_block": 1}
    parts = Parts(
        unet=blocks
        | {
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "cross_attention_dim": 32,
            "num_attention_heads": 8,
            "num_frames": FRAMES,
            "projection_class_embeddings_input_dim": 96,
            "addition_time_embed_dim": 32,
        },
        vae=blocks | {"down_block_types": ("DownEncoderBlock2D",) * 2},
        image_encoder={
            "hidden_size": 32,
            "intermediate_size": 37,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "patch_size": 32,
            "projection_dim": 32,
        },
        height=SIDE,
        width=SIDE,
    )
    return subject(request, parts)


def wan(request: Request) -> Subject:
    """Text to video: WanPipeline, prompts as embeddings."""
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    pipeline = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    draw = torch.Generator().manual_seed(0)

    def sample(i: int, seed: int) -> Sample:
        embeds = {
            name: torch.randn(1, 8, 32, generator=draw)
            for name in ("prompt_embeds", "negative_prompt_embeds")
        }
        return Sample(f"text {i}", seed, embeds, caption=f"text {i}")

    return Subject(
        name="tiny-wan",
        pipeline=pipeline,
        kind="text-to-video",
        samples=[sample(i, request.seed + i) for i in range(min(request.count, 3))],
        calibration=[sample(9, 1_000_000)],
        arguments={"height": SIDE, "width": SIDE, "num_frames": 9, "guidance_scale": 3.0},
        steps=8,
    )
