"""The demo inputs of the small models: captions with their embeddings, and first frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

import torch

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class CaptionedSet:
    """Captions with the tensors of a pipeline's arguments, one row a caption.

    Attributes:
        captions: N captions.
        calibration_count: how many leading ones are meant for calibration; the rest are held
            out for evaluation. The two never overlap.

    """

    captions: tuple[str, ...]
    calibration_count: int = field(default=0, kw_only=True)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int | slice | Sequence[int]) -> Self:
        """Select by position; an int gives a set of one. The split's size is not kept."""
        if isinstance(index, int):
            chosen = [range(len(self))[index]]
        elif isinstance(index, slice):
            chosen = list(range(len(self)))[index]
        else:
            chosen = list(index)
        tensors = {name: tensor[chosen] for name, tensor in self._tensors().items()}
        captions = tuple(self.captions[i] for i in chosen)
        return replace(self, captions=captions, calibration_count=0, **tensors)

    def named(self, *captions: str) -> Self:
        """Select by caption, in the order given.

        Raises:
            KeyError: a caption is not in the set.

        """
        position = {caption: i for i, caption in enumerate(self.captions)}
        missing = [caption for caption in captions if caption not in position]
        if missing:
            raise KeyError(
                f"no embedded prompt {missing}; `models.text.embed_captions` embeds any text"
            )
        return self[[position[caption] for caption in captions]]

    @property
    def calibration(self) -> Self:
        """The ones to make plans with."""
        return self[: self.calibration_count]

    @property
    def evaluation(self) -> Self:
        """The held-out ones to measure with."""
        return self[self.calibration_count :]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move and cast the tensors."""
        moved = {name: tensor.to(device, dtype) for name, tensor in self._tensors().items()}
        return replace(self, **moved)

    def _tensors(self) -> dict[str, Any]:
        plain = {f.name for f in fields(CaptionedSet)}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in plain}


@dataclass(frozen=True)
class Prompts(CaptionedSet):
    """Captions with their text embeddings, ready for `FluxPipeline`.

    Attributes:
        prompt_embeds: [N, 16, 384].
        pooled_prompt_embeds: [N, 384].
        negative_prompt_embeds: [N, 16, 384], N times the empty prompt.
        negative_pooled_prompt_embeds: [N, 384], likewise.

    """

    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor
    negative_pooled_prompt_embeds: torch.Tensor

    def kwargs(self) -> dict[str, Any]:
        """Return the four embedding arguments of `FluxPipeline.__call__`."""
        return self._tensors()


@dataclass(frozen=True)
class VideoPrompts(CaptionedSet):
    """Captions with their text embeddings, ready for `WanPipeline`.

    Attributes:
        prompt_embeds: [N, 16, 384].
        negative_prompt_embeds: [N, 16, 384], N times the empty prompt.

    """

    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor

    def kwargs(self) -> dict[str, Any]:
        """Return the two embedding arguments of `WanPipeline.__call__`."""
        return self._tensors()


@dataclass(frozen=True)
class FirstFrames(CaptionedSet):
    """Pictures to animate, ready for `StableVideoDiffusionPipeline`; captions are for people.

    Attributes:
        frames: uint8 [N, 3, 32, 32], RGB.

    """

    frames: torch.Tensor

    def images(self) -> list[Image]:
        """Return the frames as N pictures."""
        from PIL import Image

        return [Image.fromarray(frame.permute(1, 2, 0).cpu().numpy()) for frame in self.frames]

    def kwargs(self) -> dict[str, Any]:
        """Return the image argument of `StableVideoDiffusionPipeline.__call__`."""
        return {"image": self.images()}
