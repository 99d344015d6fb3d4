"""Fidelity to the uncached pictures, quality against real ones, and how sure one can be of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

PSNR_CAP = 100.0
"""dB given to pictures that are equal: their PSNR is infinite, and a mean has to be finite."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """A sample's mean with its 95% bootstrap interval, and its quantiles."""

    mean: float
    low: float
    high: float
    median: float
    p5: float
    worst: float

    def as_dict(self) -> dict[str, float]:
        """Plain numbers for JSON, four decimals."""
        return {name: round(float(value), 4) for name, value in vars(self).items()}


def psnr(pictures: Tensor, reference: Tensor) -> Array:
    """PSNR in dB of each picture [N, C, H, W] in [0, 1] to its reference, at most `PSNR_CAP`."""
    _same_shape(pictures, reference)
    values = [
        float(peak_signal_noise_ratio(a[None].double(), b[None].double(), data_range=1.0))
        for a, b in zip(pictures, reference, strict=True)
    ]
    return np.minimum(np.asarray(values, dtype=np.float64), PSNR_CAP)


def ssim(pictures: Tensor, reference: Tensor) -> Array:
    """SSIM of each picture to its reference; the Gaussian window shrinks for tiny pictures."""
    _same_shape(pictures, reference)
    small = min(pictures.shape[-2:]) < 16
    values = structural_similarity_index_measure(
        pictures.double(),
        reference.double(),
        data_range=1.0,
        reduction="none",
        gaussian_kernel=not small,
        kernel_size=5 if small else 11,
    )
    assert isinstance(values, Tensor)
    return values.reshape(-1).numpy().astype(np.float64)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features [N, D] and [M, D].

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2). With C1 = A'A and C2 = B'B (A, B the centred
    features over the square root of N - 1 and M - 1) the last trace is the sum of the singular
    values of A B': no root of a singular D x D matrix is taken, so fewer samples than dimensions
    cost no accuracy. They still cost bias: compare only distances at equal sample counts. For sets
    too large to hold, `evaluate.moments` gives the same from sums over them.
    """
    if len(first) < 2 or len(second) < 2:
        raise ValueError("a Fréchet distance needs at least two samples on each side")
    x, y = first.double(), second.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    a = (x - mean_x) / (len(x) - 1) ** 0.5
    b = (y - mean_y) / (len(y) - 1) ** 0.5
    cross = torch.linalg.svdvals(a @ b.T).sum()
    distance = (mean_x - mean_y).square().sum() + a.square().sum() + b.square().sum() - 2 * cross
    return max(float(distance), 0.0)


def caption_similarity(generated: Tensor, originals: Tensor, centre: Tensor) -> Array:
    """Cosine between each picture's features and those of the real picture of its caption.

    Both are taken relative to `centre` (the real set's mean), as all-positive features would
    otherwise make any two pictures alike. Named "EffLite0-caption-sim": it needs the real picture
    of each caption and compares looks, which is less than a text-image model like CLIP knows.
    """
    return F.cosine_similarity(generated - centre, originals - centre, dim=1).numpy()


def retrieval(generated: Tensor, real: Tensor, wanted: Tensor, centre: Tensor) -> Array:
    """1 for each picture whose nearest real picture (by that cosine) is its own caption's, else 0.

    `wanted` [N] are indices into `real` [M, D].
    """
    scores = F.normalize(generated - centre, dim=1) @ F.normalize(real - centre, dim=1).T
    return (scores.argmax(dim=1) == wanted).numpy().astype(np.float64)


def spread(values: Array, *, resamples: int = 2000, seed: int = 0) -> Spread:
    """Mean with a percentile-bootstrap 95% interval, median, 5th percentile and worst (lowest)."""
    low, high = bootstrap(values, lambda drawn: drawn.mean(axis=1), resamples, seed)
    return Spread(
        mean=float(values.mean()),
        low=low,
        high=high,
        median=float(np.median(values)),
        p5=float(np.quantile(values, 0.05)),
        worst=float(values.min()),
    )


def bootstrap(
    values: Array, statistic: Callable[[Array], Array], resamples: int, seed: int
) -> tuple[float, float]:
    """95% percentile interval of `statistic` (rows to numbers) over resampled rows of values."""
    generator = np.random.default_rng(seed)
    drawn = values[generator.integers(0, len(values), (resamples, len(values)))]
    low, high = np.quantile(statistic(drawn), (0.025, 0.975))
    return float(low), float(high)


def _same_shape(pictures: Tensor, reference: Tensor) -> None:
    if pictures.shape != reference.shape:
        raise ValueError(f"pictures {tuple(pictures.shape)} != reference {tuple(reference.shape)}")
