"""The small trained models by name, with their own held-out inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .inputs import InputError, Sample, Skipped, from_folder
from .subjects import Request, Subject, SubjectError

CALIBRATION_SEED = 1_000_000


def flux_emoji(request: Request) -> Subject:
    """Text to image, 64x64; prompts come embedded with the model, others go through MiniLM."""
    from ditcache.bench.reference import real_emoji
    from ditcache.models import tiny

    dtype = getattr(torch, request.dtype)
    pipeline = tiny.load_flux_emoji(request.device, dtype)
    known = tiny.flux_emoji_prompts(request.device, dtype)

    def sample(prompts: tiny.Prompts, index: int, seed: int) -> Sample:
        one = prompts[index]
        return Sample(one.captions[0], seed, one.kwargs(), caption=one.captions[0])

    held_out = known.evaluation
    if request.prompts or request.inputs:
        captions, skipped = _captions(request)
        held_out = _embedded(captions, known)
    else:
        skipped = []
    count = min(max(request.count, len(request.prompts)), len(held_out))
    return Subject(
        name="flux-emoji",
        pipeline=pipeline,
        kind="text-to-image",
        samples=[sample(held_out, i, request.seed + i) for i in range(count)],
        calibration=[
            sample(known, i, CALIBRATION_SEED + i) for i in range(known.calibration_count)
        ],
        arguments={"height": 64, "width": 64, "true_cfg_scale": 2.5},
        steps=25,
        skipped=skipped,
        real=lambda: real_emoji().features,
    )


def _captions(request: Request) -> tuple[list[str], list[Skipped]]:
    if request.prompts:
        return list(request.prompts), []
    assert request.inputs is not None
    try:
        made, skipped = from_folder(
            Path(request.inputs), "text-to-image", request.count, request.seed
        )
    except InputError as error:
        raise SubjectError(str(error)) from error
    return [s.caption or "" for s in made], skipped


def _embedded(captions: list[str], like: Any) -> Any:
    """Any captions in the form of the prompts that come with the model."""
    from ditcache.models.text import embed_captions

    tokens, pooled = embed_captions(captions)
    count = len(captions)
    empty, empty_pooled = like.negative_prompt_embeds[0], like.negative_pooled_prompt_embeds[0]
    return replace(
        like,
        captions=tuple(captions),
        prompt_embeds=tokens.to(empty),
        pooled_prompt_embeds=pooled.to(empty),
        negative_prompt_embeds=empty.expand(count, -1, -1),
        negative_pooled_prompt_embeds=empty_pooled.expand(count, -1),
        calibration_count=0,
    )


def wan_emoji(request: Request) -> Subject:
    """Text to video, nine frames of 32x32, guidance as a second call a step."""
    from ditcache.models import tiny
    from ditcache.models.tiny.video import INTERPOLATION_EMOJI

    dtype = getattr(torch, request.dtype)
    prompts = tiny.wan_emoji_prompts(request.device, dtype)

    def sample(index: int, seed: int) -> Sample:
        one = prompts[index]
        return Sample(one.captions[0], seed, one.kwargs(), caption=one.captions[0])

    own, others = _split(prompts, request)
    return Subject(
        name="wan-emoji",
        pipeline=tiny.load_wan_emoji(request.device, dtype),
        kind="text-to-video",
        samples=[sample(i, request.seed + n) for n, i in enumerate(own)],
        calibration=[sample(i, CALIBRATION_SEED + i) for i in others],
        arguments={"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 3.0},
        steps=50,
        weights={"interpolation": str(INTERPOLATION_EMOJI)},
    )


def svd_emoji(request: Request) -> Subject:
    """Image to video, nine frames of 32x32; its own held-out first frames, or a folder's."""
    from ditcache.models import tiny
    from ditcache.models.tiny.video import INTERPOLATION_EMOJI, SVD_EMOJI

    frames = tiny.svd_emoji_frames()

    def sample(index: int, seed: int) -> Sample:
        (image,) = frames[index].images()
        return Sample(frames.captions[index], seed, {"image": image}, image=image)

    own, others = _split(frames, request)
    samples, skipped = [sample(i, request.seed + n) for n, i in enumerate(own)], []
    if request.inputs:
        try:
            samples, skipped = from_folder(
                Path(request.inputs), "image-to-video", request.count, request.seed
            )
        except InputError as error:
            raise SubjectError(str(error)) from error
    return Subject(
        name="svd-emoji",
        pipeline=tiny.load_svd_emoji(request.device, getattr(torch, request.dtype)),
        kind="image-to-video",
        samples=samples,
        skipped=skipped,
        calibration=[sample(i, CALIBRATION_SEED + i) for i in others],
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


def _split(inputs: Any, request: Request) -> tuple[list[int], list[int]]:
    """Indices of the samples and of the calibration inputs, which never overlap."""
    first = inputs.calibration_count
    count = min(request.count, len(inputs) - first)
    return [first + i for i in range(count)], list(range(first))


SMALL: dict[str, Callable[[Request], Subject]] = {
    "flux-emoji": flux_emoji,
    "wan-emoji": wan_emoji,
    "svd-emoji": svd_emoji,
}
