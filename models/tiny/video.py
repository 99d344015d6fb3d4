"""The small video models: diffusers' Wan (text to video) and Stable Video Diffusion's UNet."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..interpolation import FrameInterpolator
from .sets import FirstFrames, VideoPrompts

if TYPE_CHECKING:
    from diffusers import StableVideoDiffusionPipeline, WanPipeline

WAN_EMOJI = Path(__file__).resolve().parent / "wan-emoji"
SVD_EMOJI = Path(__file__).resolve().parent / "svd-emoji"
INTERPOLATION_EMOJI = Path(__file__).resolve().parent / "interpolation-emoji"

SvdVariant = Literal["full", "guided", "four-step"]
WanVariant = Literal["full", "guided", "four-step"]
_SUFFIX = {"full": "", "guided": "-guided", "four-step": "-4-steps"}


def load_wan_emoji(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    variant: WanVariant = "full",
) -> WanPipeline:
    """Load the small text-to-video model as diffusers' unmodified `WanPipeline`.

    The text encoder and tokenizer are None: pass embeddings, `height=32, width=32, num_frames=9`
    and a guidance of 2 to 4::

        prompts = wan_emoji_prompts().evaluation[:4]
        videos = load_wan_emoji()(
            **prompts.kwargs(), height=32, width=32, num_frames=9, guidance_scale=3.0,
            num_inference_steps=50,
        ).frames

    The scheduler is UniPC of order 2 on flow sigmas. The weights are stored as fp16 and are cast
    to `dtype`.

    The variants are distilled from the full model at guidance 3. "guided" gives the guided velocity
    in one call: pass `guidance_scale=1.0`. "four-step" is a consistency model with a scheduler of
    its own (LCM's for flow models), which draws noise at every step from PyTorch's global
    generator: pass `num_inference_steps=4, guidance_scale=1.0`.

    Raises:
        ImportError: diffusers is missing.
        ValueError: there is no such variant.
        FileNotFoundError: its weights are not there (says how to make them).

    """
    weights = _weights(WAN_EMOJI, "transformer", variant, "wan_distill")
    diffusers = import_diffusers()
    if variant == "four-step":
        scheduler = diffusers.FlowMatchLCMScheduler.from_pretrained(
            str(WAN_EMOJI / "scheduler-4-steps")
        )
    else:
        scheduler = diffusers.UniPCMultistepScheduler.from_pretrained(str(WAN_EMOJI / "scheduler"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.WanPipeline(
            scheduler=scheduler,
            vae=diffusers.AutoencoderKLWan.from_pretrained(str(WAN_EMOJI / "vae"), dtype=dtype),
            text_encoder=None,
            tokenizer=None,
            transformer=diffusers.WanTransformer3DModel.from_pretrained(str(weights), dtype=dtype),
        )
    return ready(pipeline, ("transformer", "vae"), device)


def wan_emoji_prompts(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> VideoPrompts:
    """Load the embedded demo prompts of the video model: captions of the training clips.

    The first 32 are for calibration, all others for evaluation (`.calibration`, `.evaluation`).
    """
    from safetensors.torch import load_file

    listed = json.loads((WAN_EMOJI / "prompts.json").read_text())
    tensors = load_file(WAN_EMOJI / "prompts.safetensors")
    captions = tuple(listed["calibration"] + listed["evaluation"])
    return VideoPrompts(
        captions=captions,
        prompt_embeds=tensors["tokens"],
        negative_prompt_embeds=tensors["empty_tokens"].expand(len(captions), -1, -1),
        calibration_count=len(listed["calibration"]),
    ).to(device, dtype)


def load_svd_emoji(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    variant: SvdVariant = "full",
) -> StableVideoDiffusionPipeline:
    """Load the small image-to-video model as diffusers' `StableVideoDiffusionPipeline`.

    Nine frames of 32x32 go on from a picture::

        frames = svd_emoji_frames().evaluation[:4]
        videos = load_svd_emoji()(
            **frames.kwargs(), height=32, width=32, num_inference_steps=25
        ).frames

    `num_frames=5, fps=4` gives keyframes: every second one of the nine. The weights are stored as
    fp16 and are cast to `dtype`.

    The variants are distilled from the full model. "four-step" is a consistency model with its own
    scheduler, which draws noise at every step from PyTorch's global generator: pass
    `num_inference_steps=4, max_guidance_scale=1.0`. "guided" gives the velocity of guidance 1 to 2
    in one call: pass `max_guidance_scale=1.0`.

    Raises:
        ImportError: diffusers or transformers is missing.
        ValueError: there is no such variant.
        FileNotFoundError: its weights are not there (says how to make them).

    """
    weights = _weights(SVD_EMOJI, "unet", variant, "svd_distill")
    diffusers = import_diffusers()
    import transformers

    if variant == "four-step":
        scheduler = diffusers.CMStochasticIterativeScheduler.from_pretrained(
            str(SVD_EMOJI / "scheduler-4-steps")
        )
    else:
        scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(str(SVD_EMOJI / "scheduler"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.StableVideoDiffusionPipeline(
            vae=diffusers.AutoencoderKLTemporalDecoder.from_pretrained(
                str(SVD_EMOJI / "vae"), dtype=dtype
            ),
            image_encoder=transformers.CLIPVisionModelWithProjection.from_pretrained(
                str(SVD_EMOJI / "image_encoder"), dtype=dtype
            ),
            unet=diffusers.UNetSpatioTemporalConditionModel.from_pretrained(
                str(weights), dtype=dtype
            ),
            scheduler=scheduler,
            feature_extractor=transformers.CLIPImageProcessorPil.from_pretrained(
                str(SVD_EMOJI / "feature_extractor")
            ),
        )
    return ready(pipeline, ("unet", "vae", "image_encoder"), device)


def svd_emoji_frames() -> FirstFrames:
    """Load the demo's first frames, which the denoiser was not trained to begin with.

    The first 32 are for calibration, all others for evaluation (`.calibration`, `.evaluation`).
    """
    from safetensors.torch import load_file

    listed = json.loads((SVD_EMOJI / "frames.json").read_text())
    captions = tuple(listed["calibration"] + listed["evaluation"])
    return FirstFrames(
        captions=captions,
        frames=load_file(SVD_EMOJI / "frames.safetensors")["frames"],
        calibration_count=len(listed["calibration"]),
    )


def load_interpolation_emoji(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> FrameInterpolator:
    """Load the network that makes the frame between two; `double_rate` applies it to clips."""
    from safetensors.torch import load_file

    model = FrameInterpolator()
    model.load_state_dict(load_file(INTERPOLATION_EMOJI / "model.safetensors"))
    return model.to(device, dtype).eval()


def _weights(folder: Path, part: str, variant: str, script: str) -> Path:
    """Folder of a variant's denoiser; raises what the loaders say."""
    if variant not in _SUFFIX:
        raise ValueError(f"expected a variant of {sorted(_SUFFIX)}, got {variant!r}")
    weights = folder / f"{part}{_SUFFIX[variant]}"
    if not weights.is_dir():
        kind = "consistency" if variant == "four-step" else "guidance"
        raise FileNotFoundError(
            f"no {weights}: `python -m ditcache.models.train.{script} {kind}` makes it"
        )
    return weights


def import_diffusers() -> Any:
    """Import diffusers, or say what to install."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("the small models need diffusers: ditcache[diffusers]") from error
    return diffusers


def ready(pipeline: Any, parts: tuple[str, ...], device: torch.device | str) -> Any:
    """Move a pipeline to `device`, its named parts in eval mode, without a progress bar."""
    for part in parts:
        getattr(pipeline, part).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
