"""The small trained models by name, with their own held-out inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from .inputs import InputError, Sample, Skipped, from_folder
from .subjects import Kind, Request, Subject, SubjectError

if TYPE_CHECKING:
    from ditcache.models.tiny import Prompts, VideoPrompts

CALIBRATION_SEED = 1_000_000


def flux_emoji(request: Request) -> Subject:
    """Text to image, 64x64; prompts come embedded with the model, others go through MiniLM."""
    from ditcache.bench.reference import real_emoji
    from ditcache.models import tiny

    dtype = getattr(torch, request.dtype)
    known = tiny.flux_emoji_prompts(request.device, dtype)
    samples, skipped = _prompted(known, request)
    return Subject(
        name="flux-emoji",
        pipeline=tiny.load_flux_emoji(request.device, dtype),
        kind="text-to-image",
        samples=samples,
        calibration=_calibration(known),
        arguments={"height": 64, "width": 64, "true_cfg_scale": 2.5},
        steps=25,
        skipped=skipped,
        real=lambda: real_emoji().features,
    )


def wan_emoji(request: Request) -> Subject:
    """Text to video, nine frames of 32x32, guidance as a second call a step; prompts as above."""
    from ditcache.models import tiny
    from ditcache.models.tiny.video import INTERPOLATION_EMOJI, WAN_EMOJI

    dtype = getattr(torch, request.dtype)
    known = tiny.wan_emoji_prompts(request.device, dtype)
    samples, skipped = _prompted(known, request)
    return Subject(
        name="wan-emoji",
        pipeline=tiny.load_wan_emoji(request.device, dtype),
        kind="text-to-video",
        samples=samples,
        skipped=skipped,
        calibration=_calibration(known),
        arguments={"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 3.0},
        steps=50,
        weights={
            "distilled": str(WAN_EMOJI / "transformer-guided"),
            "lcm": str(WAN_EMOJI / "transformer-4-steps"),
            "interpolation": str(INTERPOLATION_EMOJI),
        },
        schedulers={"lcm": str(WAN_EMOJI / "scheduler-4-steps")},
        arguments_with={"distilled": {"guidance_scale": 1.0}, "lcm": {"guidance_scale": 1.0}},
    )


def svd_emoji(request: Request) -> Subject:
    """Image to video, nine frames of 32x32; its own held-out first frames, or a folder's."""
    from ditcache.models import tiny
    from ditcache.models.tiny.video import INTERPOLATION_EMOJI, SVD_EMOJI

    if request.prompts:
        raise SubjectError("svd-emoji starts from pictures; give --inputs, not prompts")
    frames = tiny.svd_emoji_frames()

    def sample(index: int, seed: int) -> Sample:
        (image,) = frames[index].images()
        return Sample(frames.captions[index], seed, {"image": image}, image=image)

    first = frames.calibration_count
    if request.inputs:
        samples, skipped = _folder(request, "image-to-video")
    else:
        count = min(request.count, len(frames) - first)
        samples, skipped = [sample(first + i, request.seed + i) for i in range(count)], []
    return Subject(
        name="svd-emoji",
        pipeline=tiny.load_svd_emoji(request.device, getattr(torch, request.dtype)),
        kind="image-to-video",
        samples=samples,
        skipped=skipped,
        calibration=[sample(i, CALIBRATION_SEED + i) for i in range(first)],
        arguments={"height": 32, "width": 32, "num_frames": 9},
        steps=25,
        weights={
            "distilled": str(SVD_EMOJI / "unet-guided"),
            "lcm": str(SVD_EMOJI / "unet-4-steps"),
            "interpolation": str(INTERPOLATION_EMOJI),
        },
        schedulers={"lcm": str(SVD_EMOJI / "scheduler-4-steps")},
        arguments_with={
            "distilled": {"max_guidance_scale": 1.0},
            "lcm": {"max_guidance_scale": 1.0},
            "interpolation": {"fps": 4},
        },
    )


Known = TypeVar("Known", "Prompts", "VideoPrompts")


def _prompted(known: Known, request: Request) -> tuple[list[Sample], list[Skipped]]:
    """The model's own held-out prompts, or those that were asked for."""
    skipped: list[Skipped] = []
    held_out, count = known.evaluation, request.count
    if request.prompts:
        held_out, count = _embedded(list(request.prompts), known), len(request.prompts)
    elif request.inputs:
        made, skipped = _folder(request, "text-to-image")
        held_out = _embedded([sample.caption or "" for sample in made], known)
    count = min(count, len(held_out))
    return [_sample(held_out, i, request.seed + i) for i in range(count)], skipped


def _calibration(known: Known) -> list[Sample]:
    return [_sample(known, i, CALIBRATION_SEED + i) for i in range(known.calibration_count)]


def _sample(prompts: Known, index: int, seed: int) -> Sample:
    one = prompts[index]
    return Sample(one.captions[0], seed, one.kwargs(), caption=one.captions[0])


def _folder(request: Request, kind: Kind) -> tuple[list[Sample], list[Skipped]]:
    assert request.inputs is not None
    try:
        return from_folder(Path(request.inputs), kind, request.count, request.seed)
    except InputError as error:
        raise SubjectError(str(error)) from error


def _embedded(captions: list[str], like: Known) -> Known:
    """Any captions in the form of the prompts that come with the model."""
    from ditcache.models.text import embed_captions

    try:
        tokens, pooled = embed_captions(captions)
    except ImportError as error:
        raise SubjectError(str(error)) from error
    wanted = {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled}
    tensors: dict[str, Tensor] = {}
    for name, own in like.kwargs().items():
        empty = own[:1].expand(len(captions), *own.shape[1:])
        tensors[name] = wanted[name].to(own) if name in wanted else empty
    return replace(like, captions=tuple(captions), calibration_count=0, **tensors)


SMALL: dict[str, Callable[[Request], Subject]] = {
    "flux-emoji": flux_emoji,
    "wan-emoji": wan_emoji,
    "svd-emoji": svd_emoji,
}
