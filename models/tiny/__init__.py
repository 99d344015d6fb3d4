"""The small trained models that come with the package, and their demo inputs.

`flux-emoji` is diffusers' Flux trained on emoji (text to image, 64x64); `dit-digits` is diffusers'
DiT trained on 8x8 digits; `wan-emoji` is diffusers' Wan trained on animated emoji (text to video,
nine frames of 32x32); `svd-emoji` is Stable Video Diffusion's UNet (image to video, same size).
See the `CARD.md` beside each for data, training and limits.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .sets import FirstFrames, Prompts, VideoPrompts
from .video import (
    INTERPOLATION_EMOJI,
    SVD_EMOJI,
    WAN_EMOJI,
    SvdVariant,
    WanVariant,
    import_diffusers,
    load_interpolation_emoji,
    load_svd_emoji,
    load_wan_emoji,
    ready,
    svd_emoji_frames,
    wan_emoji_prompts,
)

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel, FluxPipeline

__all__ = [
    "DIGITS_NULL_CLASS",
    "DIT_DIGITS",
    "FLUX_EMOJI",
    "HERE",
    "INTERPOLATION_EMOJI",
    "SVD_EMOJI",
    "WAN_EMOJI",
    "FirstFrames",
    "Prompts",
    "StepScope",
    "SvdVariant",
    "VideoPrompts",
    "WanVariant",
    "flux_emoji_prompts",
    "load_dit_digits",
    "load_flux_emoji",
    "load_interpolation_emoji",
    "load_svd_emoji",
    "load_wan_emoji",
    "sample_digits",
    "svd_emoji_frames",
    "wan_emoji_prompts",
]

HERE = Path(__file__).resolve().parent
FLUX_EMOJI = HERE / "flux-emoji"
DIT_DIGITS = HERE / "dit-digits"
DIGITS_NULL_CLASS = 10

StepScope = Callable[[torch.Tensor], AbstractContextManager[object]]


def load_flux_emoji(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> FluxPipeline:
    """Load the small text-to-image model as diffusers' unmodified `FluxPipeline`.

    Text encoders and tokenizers are None: pass embeddings, `height=64, width=64`, and
    `true_cfg_scale` of 2 to 3::

        prompts = flux_emoji_prompts().evaluation[:4]
        images = load_flux_emoji()(
            **prompts.kwargs(), height=64, width=64, true_cfg_scale=2.5, num_inference_steps=50
        ).images

    The weights are stored as fp16 and are cast to `dtype`.

    Raises:
        ImportError: diffusers is missing.

    """
    diffusers = import_diffusers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.FluxPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(
                str(FLUX_EMOJI / "scheduler")
            ),
            vae=diffusers.AutoencoderKL.from_pretrained(str(FLUX_EMOJI / "vae"), dtype=dtype),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=diffusers.FluxTransformer2DModel.from_pretrained(
                str(FLUX_EMOJI / "transformer"), dtype=dtype
            ),
        )
    return ready(pipeline, ("transformer", "vae"), device)


def flux_emoji_prompts(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Prompts:
    """Load the embedded demo prompts: a random sample of the captions, drawn once.

    The first 32 are for calibration, all others for evaluation (`.calibration`, `.evaluation`).
    """
    from safetensors.torch import load_file

    listed = json.loads((FLUX_EMOJI / "prompts.json").read_text())
    tensors = load_file(FLUX_EMOJI / "prompts.safetensors")
    captions = tuple(listed["calibration"] + listed["evaluation"])
    count = len(captions)
    return Prompts(
        captions=captions,
        prompt_embeds=tensors["tokens"],
        pooled_prompt_embeds=tensors["pooled"],
        negative_prompt_embeds=tensors["empty_tokens"].expand(count, -1, -1),
        negative_pooled_prompt_embeds=tensors["empty_pooled"].expand(count, -1),
        calibration_count=len(listed["calibration"]),
    ).to(device, dtype)


def load_dit_digits(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DiTTransformer2DModel:
    """Load the small class-conditional model.

    It maps ([N, 1, 8, 8], timestep = 1000 sigma [N], class_labels int64 [N]) to velocities of the
    shape of its input; class 10 is the null class.

    Raises:
        ImportError: diffusers is missing.

    """
    model = import_diffusers().DiTTransformer2DModel.from_pretrained(str(DIT_DIGITS), dtype=dtype)
    return model.to(device).eval()


@torch.no_grad()
def sample_digits(
    model: Callable[..., tuple[torch.Tensor, ...]],
    labels: torch.Tensor | Sequence[int],
    steps: int = 50,
    guidance: float = 2.0,
    generator: torch.Generator | None = None,
    *,
    step_scope: StepScope | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Sample digits by Euler's method, sigma from 1 to 0 in equal steps.

    Args:
        model: what `load_dit_digits` gives, or a compiled version of it.
        labels: N classes in 0..9.
        steps: number of Euler steps.
        guidance: scale of classifier-free guidance; both branches run as one batch of 2 N, the
            conditional one first. At 1 the null branch is not run.
        generator: for the initial noise, which is drawn on its device in fp32.
        step_scope: called with the timesteps (fp32 [steps], 1000 sigma); the loop runs inside the
            context manager that it returns.
        device: where the model is.
        dtype: the model's type; the state itself is kept in fp32.

    Returns:
        fp32 [N, 1, 8, 8], about -1 to 1.

    """
    classes = torch.as_tensor(labels, dtype=torch.int64, device=device)
    count = len(classes)
    noise_device = generator.device if generator is not None else torch.device("cpu")
    x = torch.randn(count, 1, 8, 8, generator=generator, device=noise_device).to(device)
    guided = guidance != 1
    if guided:
        classes = torch.cat([classes, torch.full_like(classes, DIGITS_NULL_CLASS)])
    sigmas = torch.linspace(1, 0, steps + 1, device=device)
    timesteps = 1000 * sigmas[:-1]
    with step_scope(timesteps) if step_scope is not None else nullcontext():
        for i, timestep in enumerate(timesteps):
            inputs = torch.cat([x, x]) if guided else x
            velocity = model(
                inputs.to(dtype), timestep.expand(len(inputs)), classes, return_dict=False
            )[0].float()
            if guided:
                conditional, null = velocity.chunk(2)
                velocity = null + guidance * (conditional - null)
            x = x + (sigmas[i + 1] - sigmas[i]) * velocity
    return x
