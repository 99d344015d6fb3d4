"""What is measured: the two small trained models, driven through their unmodified samplers.

A workload knows how to sample a batch with a given (compiled or plain) denoiser, how to turn the
result into pictures, and which prompts and seeds serve calibration and which evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ditcache
import torch
from ditcache.models.tiny import (
    flux_emoji_prompts,
    load_dit_digits,
    load_flux_emoji,
    sample_digits,
)
from torch import Tensor, nn

from .features import SPACE, features, looks
from .reference import RealSet, real_digits, real_emoji
from .solvers import AdamsBashforth2, EvenAdamsBashforth2, Solver

# First seeds of the sets, far enough apart that no two sets share one.
CALIBRATION_SEED, EVALUATION_SEED, SECOND_SEED = 1_000_000, 0, 2_000_000
SIDE = 64
DIGIT_CLASSES = 10


@dataclass(frozen=True)
class Batch:
    """Samples that are generated together: indices into the workload's conditions, and seeds."""

    conditions: tuple[int, ...]
    seeds: tuple[int, ...]


class Workload(Protocol):
    """A model, its sampler and its conditions."""

    name: str
    space: str
    guidance: float
    denoiser: nn.Module
    pipeline: Any
    """The diffusers pipeline that runs the loop; None for a loop of one's own."""
    batched_guidance: bool
    """Whether both guidance branches run as one batch."""
    solvers: tuple[Solver, ...]
    """Those that `sample` can use."""

    def sample(
        self, model: nn.Module, batch: Batch, steps: int, *, solver: Solver = "euler"
    ) -> Tensor:
        """Return the final latents [N, ...] of one whole denoising loop."""
        ...

    def position(self) -> tuple[int, float]:
        """Step index and sigma of the model call that runs or comes next."""
        ...

    def latent_pictures(self, hidden: Tensor) -> list[Tensor]:
        """The model's latent input as one [C, T, H, W] for each sample."""
        ...

    def pictures(self, latents: Tensor) -> Tensor:
        """Latents as pictures [N, 3, H, W] in [0, 1]."""
        ...

    def embed(self, pictures: Tensor) -> Tensor:
        """Return float64 features [N, D] of pictures, in the feature space called `space`."""
        ...

    def look(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same features, and maps [N, M] for the perceptual distance if there is one."""
        ...

    def captions(self, batch: Batch) -> list[str]:
        """Tell what each sample was asked to show."""
        ...

    def real(self) -> RealSet | None:
        """Give the real data set in that feature space, if there is one."""
        ...

    def batches(
        self, count: int, size: int, *, seed: int, calibration: bool = False
    ) -> list[Batch]:
        """`count` samples over the held-out (or calibration) conditions, in batches of `size`."""
        ...


class FluxEmoji:
    """The small Flux: diffusers' FluxPipeline with true guidance, two model calls a step."""

    name = "flux-emoji"
    space = SPACE
    batched_guidance = False
    solvers: tuple[Solver, ...] = ("euler", "ab2")

    def __init__(self, guidance: float = 2.5) -> None:
        self.guidance = guidance
        self.pipeline: Any = load_flux_emoji()
        self.denoiser: nn.Module = self.pipeline.transformer
        self.prompts = flux_emoji_prompts()
        self.schedulers: dict[Solver, Any] = {
            "euler": self.pipeline.scheduler,
            "ab2": AdamsBashforth2.from_config(self.pipeline.scheduler.config),
        }

    def sample(
        self, model: nn.Module, batch: Batch, steps: int, *, solver: Solver = "euler"
    ) -> Tensor:
        self.pipeline.transformer = model
        self.pipeline.scheduler = self.schedulers[solver]
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        return self.pipeline(
            **self.prompts[batch.conditions].kwargs(),
            height=SIDE,
            width=SIDE,
            true_cfg_scale=self.guidance,
            num_inference_steps=steps,
            generator=generators,
            output_type="latent",
        ).images

    def position(self) -> tuple[int, float]:
        index = self.pipeline.scheduler.step_index or 0
        return index, float(self.pipeline.scheduler.sigmas[index])

    def latent_pictures(self, hidden: Tensor) -> list[Tensor]:
        pipe = self.pipeline
        return list(pipe._unpack_latents(hidden, SIDE, SIDE, pipe.vae_scale_factor)[:, :, None])

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        pipe = self.pipeline
        grid = pipe._unpack_latents(latents, SIDE, SIDE, pipe.vae_scale_factor)
        grid = grid / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
        decoded = pipe.vae.decode(grid, return_dict=False)[0]
        return (decoded / 2 + 0.5).clamp(0, 1)

    def embed(self, pictures: Tensor) -> Tensor:
        return features(pictures)

    def look(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        return looks(pictures)

    def captions(self, batch: Batch) -> list[str]:
        return list(self.prompts[batch.conditions].captions)

    def real(self) -> RealSet:
        return real_emoji()

    def batches(
        self, count: int, size: int, *, seed: int, calibration: bool = False
    ) -> list[Batch]:
        first = 0 if calibration else self.prompts.calibration_count
        total = self.prompts.calibration_count if calibration else len(self.prompts) - first
        return split_batches([first + i % total for i in range(count)], size, seed)


class DitDigits:
    """The small class-conditional DiT: both guidance branches in one batch, Euler's method."""

    name = "dit-digits"
    pipeline = None
    batched_guidance = True
    solvers: tuple[Solver, ...] = ("euler", "ab2")
    space = "pixels"  # 64 numbers: at this size a network's features would say less

    def __init__(self, guidance: float = 2.0) -> None:
        self.guidance = guidance
        self.denoiser: nn.Module = load_dit_digits()

    def sample(
        self, model: nn.Module, batch: Batch, steps: int, *, solver: Solver = "euler"
    ) -> Tensor:
        generator = torch.Generator().manual_seed(batch.seeds[0])
        self.step, self.steps = -1, steps

        def call(*inputs: Tensor, **options: Any) -> tuple[Tensor]:
            self.step += 1
            output = model(*inputs, **options)[0]
            return (multistep(output) if solver == "ab2" else output,)

        multistep = EvenAdamsBashforth2()
        return sample_digits(
            call,
            batch.conditions,
            steps,
            self.guidance,
            generator,
            step_scope=ditcache.generation,
        )

    def position(self) -> tuple[int, float]:
        return self.step, 1 - self.step / self.steps

    def latent_pictures(self, hidden: Tensor) -> list[Tensor]:
        return list(hidden[:, :, None])

    def pictures(self, latents: Tensor) -> Tensor:
        return ((latents + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)

    def embed(self, pictures: Tensor) -> Tensor:
        return pictures[:, 0].flatten(1).double()

    def look(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.embed(pictures), None

    def captions(self, batch: Batch) -> list[str]:
        return [str(label) for label in batch.conditions]

    def real(self) -> RealSet:
        return real_digits()

    def batches(
        self, count: int, size: int, *, seed: int, calibration: bool = False
    ) -> list[Batch]:
        # The classes are the same for both; only the seeds tell calibration from evaluation.
        return split_batches([i % DIGIT_CLASSES for i in range(count)], size, seed)


WORKLOADS: dict[str, type[FluxEmoji] | type[DitDigits]] = {
    FluxEmoji.name: FluxEmoji,
    DitDigits.name: DitDigits,
}


def split_batches(conditions: Sequence[int], size: int, seed: int) -> list[Batch]:
    """Equal batches, so that no second shape is compiled: the last one is topped up if short."""
    short = -len(conditions) % size
    wanted = [*conditions, *conditions[:short]] if short else list(conditions)
    return [
        Batch(tuple(wanted[i : i + size]), tuple(seed + j for j in range(i, i + size)))
        for i in range(0, len(wanted), size)
    ]
