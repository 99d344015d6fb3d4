"""M6: generate keyframes only, and let a learned network make the frames between."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..subjects import Subject
from .base import Method, MethodError, Setup, Stage
from .weights import apply_arguments, given

NOTHING = nn.Identity()
TOGETHER = 4  # frames that are interpolated at a time: at full size, more take gigabytes


class Keyframes(Method):
    """Half of the frames by the model, all others interpolated; role "interpolation".

    The network maps (before [N, 3, H, W], after [N, 3, H, W], time [N] in 0..1) to [N, 3, H, W],
    all in [0, 1].
    """

    name = "M6"
    title = "keyframes + interpolation"
    stage = Stage.SAMPLER
    changes = frozenset({"the number of frames"})
    role = "interpolation"

    def __init__(self) -> None:
        self.network: nn.Module = NOTHING
        self.wanted = 0

    def prepare(self, subject: Subject, setup: Setup) -> None:
        from ..interpolation import load_interpolator

        if subject.frames is None:
            raise MethodError("M6 interpolates frames, and this model makes single pictures")
        where = given(subject, self.role, self.name)
        with setup.clocked("load weights"):
            self.network = load_interpolator(where, subject.device)
        self.wanted = subject.frames
        keyframes = keyframe_count(subject.frames, _temporal_ratio(subject))
        if keyframes >= subject.frames:
            raise MethodError(f"{subject.frames} frames are too few to leave some out")
        subject.arguments["num_frames"] = keyframes
        apply_arguments(subject, self.role, where, setup)
        setup.notes.append(f"{keyframes} of {self.wanted} frames generated")

    @torch.inference_mode()
    def post(self, frames: Tensor) -> Tensor:
        return stretch(frames, self.wanted, self.network)


def keyframe_count(frames: int, ratio: int) -> int:
    """About half of the frames, first and last included, of the form ratio * k + 1."""
    half = frames // 2 + 1
    return max(2, half if ratio == 1 else round((half - 1) / ratio) * ratio + 1)


def stretch(frames: Tensor, wanted: int, network: nn.Module) -> Tensor:
    """Spread K frames [K, 3, H, W] over `wanted` equal times; those between are interpolated."""
    if len(frames) < 2:
        raise MethodError("interpolation needs two keyframes")
    places = torch.linspace(0, len(frames) - 1, wanted, dtype=torch.float64)
    before = places.floor().long().clamp(max=len(frames) - 2)
    time = (places - before).float()
    between = (time > 1e-6) & (time < 1 - 1e-6)
    nearest = torch.where(time < 0.5, before, before + 1)
    result = frames[nearest.to(frames.device)].clone()
    for index in between.nonzero()[:, 0].split(TOGETHER):
        left, when = (x[index].to(frames.device) for x in (before, time))
        made = network(frames[left].float(), frames[left + 1].float(), when)
        result[index.to(frames.device)] = made.clamp(0, 1).to(frames.dtype)
    return result


def _temporal_ratio(subject: Subject) -> int:
    """How many frames share a latent frame: a video autoencoder takes ratio * k + 1 frames."""
    return int(getattr(subject.pipeline, "vae_scale_factor_temporal", 1))
