"""What describes an architecture: a small model with random weights, a pipeline that runs it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Guidance = Literal["batched", "separate", "embedded", "none"]
TEXT, WIDTH, POOLED = 6, 12, 8
"""Tokens of a prompt, width of its embeddings, and of the pooled ones."""
IMAGE, VIDEO = "image transformer", "video transformer"


@dataclass(frozen=True)
class Request:
    """One generation: denoising steps, the small or the large resolution, the seed."""

    steps: int = 8
    large: bool = False
    seed: int = 0

    @property
    def generator(self) -> torch.Generator:
        """A fresh generator of the seed."""
        return torch.Generator().manual_seed(self.seed)


Sampler = Callable[[nn.Module, Request], Tensor]


@dataclass(frozen=True)
class Architecture:
    """One row of the coverage table.

    `denoiser` builds the model; `loop` builds what runs it: a function of the model (compiled or
    not) and a request that gives the final latents. `guidance` says how the pipeline guides:
    `branches` calls of the model make a step. `single_graph` is false where Dynamo cannot trace
    the model in one piece, `lazy` true where it can from the second call on; `sizes` is
    false where the pipeline makes one size only, and a large request is a larger batch.
    """

    name: str
    cls: str
    pipeline: str
    family: str
    guidance: Guidance
    denoiser: Callable[[], nn.Module]
    loop: Callable[[], Sampler]
    single_graph: bool = True
    lazy: bool = False
    sizes: bool = True

    @property
    def branches(self) -> int:
        """Calls of the model in one denoising step."""
        return 2 if self.guidance == "separate" else 1

    def build(self) -> nn.Module:
        """The model, ready for inference, with the same random weights every time.

        Weights that are zero or one at first (gates, output layers) are random too: else most of
        the model would not reach the output, and a wrong result would go unseen.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.denoiser()
            for parameter in model.parameters():
                if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                    parameter.data.add_(0.1 * torch.randn_like(parameter))
        return model.requires_grad_(False).eval()

    def sampler(self) -> Sampler:
        """The model's own pipeline; other parts that it needs have the same weights each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self.loop()


def side(request: Request, factor: int = 16) -> dict[str, int]:
    """Height and width in pixels: four latent tokens by four, or six by four."""
    return {"height": factor * (6 if request.large else 4), "width": factor * 4}


def prompts(*, pooled: bool = False, negative: bool = True) -> dict[str, Any]:
    """Embeddings of a prompt, of a negative one and pooled ones of both, as pipelines call them."""
    given: dict[str, Any] = {"prompt_embeds": noise(1, TEXT, WIDTH)}
    if pooled:
        given["pooled_prompt_embeds"] = noise(1, POOLED)
    if negative:
        given |= {f"negative_{k}": noise(*v.shape, seed=8) for k, v in given.items()}
    return given


def masks(kind: torch.dtype = torch.long) -> dict[str, Any]:
    """Which tokens of a prompt and of a shorter negative one are no padding, as T5 makes them."""
    mask = torch.ones(1, TEXT, dtype=kind)
    short = mask.clone()
    short[:, TEXT // 2 :] = 0
    return {"prompt_attention_mask": mask, "negative_prompt_attention_mask": short}


def image_encoder(width: int) -> tuple[Any, Any]:
    """A small CLIP image encoder that gives features of `width`, and its preprocessor."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=16,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=112,
    )
    size = {"height": 224, "width": 224}
    processor = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    return CLIPVisionModelWithProjection(config).eval(), processor


def picture(height: int, width: int) -> Any:
    """A picture of noise."""
    from PIL import Image

    pixels = (noise(height, width, 3).clamp(-2, 2) * 63 + 128).byte()
    return Image.fromarray(pixels.numpy())


def noise(*shape: int, seed: int = 7) -> Tensor:
    """Normal noise that depends on its shape and seed alone: stands for embeddings."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flow_scheduler(**options: Any) -> Any:
    """The rectified-flow Euler scheduler that most image models come with."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def pipeline(kind: Callable[..., Any], **parts: Any) -> Any:
    """A pipeline of `parts` alone, without a progress bar.

    What else its constructor requires (text encoders, tokenizers, a decoder) is None: prompts are
    given as embeddings and latents come out. Pipelines allow that, though no annotation says so.
    """
    required = (n for n, p in inspect.signature(kind).parameters.items() if p.default is p.empty)
    made = kind(**(dict.fromkeys(required) | parts))
    made.set_progress_bar_config(disable=True)
    return made


def into(pipe: Any, part: str, call: Callable[[Request], dict[str, Any]]) -> Sampler:
    """A sampler that puts the model into a pipeline and calls it for latents."""

    def sample(model: nn.Module, request: Request) -> Tensor:
        setattr(pipe, part, model)
        given = {
            "num_inference_steps": request.steps,
            "generator": request.generator,
            "output_type": "latent",
            "return_dict": False,
        }
        with torch.no_grad():
            return pipe(**(given | call(request)))[0]

    return sample
