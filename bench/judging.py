"""One contestant's pictures in numbers, and two contestants' numbers against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import metrics
from .arena import Arena
from .digit_judge import right_class
from .features import SPACE
from .metrics import Array
from .quality import CAPTION, Pictures, frechet_name


@dataclass(frozen=True)
class Metric:
    """A column: its key in the JSON, its heading, and which direction is better.

    `each` metrics have a number for every sample; the others are of the whole set.
    """

    key: str
    heading: str
    higher: bool
    digits: int
    each: bool = True


PSNR = Metric("psnr", "PSNR", True, 2)
SSIM = Metric("ssim", "SSIM", True, 4)
PERCEPTUAL = Metric(f"{SPACE}-distance", f"{SPACE}-dist", False, 5)
LIKENESS = Metric(CAPTION, "caption sim", True, 4)
ACCURACY = Metric("class_accuracy", "class acc.", True, 3)
TO_REAL = Metric("frechet:real", "FD real", False, 2, each=False)
TO_UNCACHED = Metric("frechet:uncached", "FD uncached", False, 3, each=False)
METRICS = (PSNR, SSIM, PERCEPTUAL, LIKENESS, ACCURACY, TO_REAL, TO_UNCACHED)


@dataclass(frozen=True)
class Against:
    """Ours minus another's, so that positive is better, with the 95% interval of the mean.

    The interval is a bootstrap over samples, which are paired by prompt and seed. Of a Fréchet
    distance it is what changing the seeds alone does to it.
    """

    other: str
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """'ahead', 'behind', or 'level' if the interval does not tell."""
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else "level"


def judge(arena: Arena, made: Pictures, uncached: Pictures | None) -> dict[str, Any]:
    """Numbers of each sample under "each", and of the set under "set".

    `uncached` are the pictures of the same prompts and seeds; None for those themselves. `made`
    may be the first of them alone: then the set has no numbers, as Fréchet distances of unequal
    counts do not compare.
    """
    workload, captions = arena.workload, arena.captions[: len(made.images)]
    complete = len(made.images) == len(arena.captions)
    if uncached is not None:
        uncached = uncached.first(len(made.images))
    each: dict[str, Array] = {}
    real = workload.real()
    if uncached is not None:
        each[PSNR.key] = metrics.psnr(made.images, uncached.images)
        each[SSIM.key] = metrics.ssim(made.images, uncached.images)
        if made.maps is not None and uncached.maps is not None:
            distance = (made.maps - uncached.maps).square().sum(1)
            each[PERCEPTUAL.key] = distance.double().numpy()
    if real is not None and real.index:
        own = real.features[real.rows(captions)]
        each[LIKENESS.key] = metrics.caption_similarity(made.features, own, real.centre)
    if workload.space == "pixels":
        each[ACCURACY.key] = right_class(made.images, [int(c) for c in captions])
    whole: dict[str, float] = {}
    if real is not None and complete:
        whole[TO_REAL.key] = metrics.frechet_distance(made.features, real.features)
    if uncached is not None and complete:
        whole[TO_UNCACHED.key] = metrics.frechet_distance(made.features, uncached.features)
    return {
        "each": {k: np.round(v, 6).tolist() for k, v in each.items()},
        "set": {k: round(v, 4) for k, v in whole.items()},
        "frechet": frechet_name(workload.space),
        "samples": len(made.images),
    }


def value(cell: Mapping[str, Any], metric: Metric) -> float | None:
    """The cell's figure in a metric: the mean over samples, or the set's."""
    if not metric.each:
        return cell["set"].get(metric.key)
    each = cell["each"].get(metric.key)
    return None if each is None else float(np.mean(each))


def compare(
    mine: Mapping[str, Any], other: Mapping[str, Any], metric: Metric, noise: float
) -> Against:
    """Compare two cells in a metric that both have, on the samples that both have.

    `noise` is the Fréchet distance's.
    """
    sign = 1 if metric.higher else -1
    if not metric.each:
        gap = sign * (mine["set"][metric.key] - other["set"][metric.key])
        return Against(other["contestant"], gap, gap - noise, gap + noise)
    pair = [np.asarray(cell["each"][metric.key]) for cell in (mine, other)]
    count = min(map(len, pair))
    found = metrics.spread(sign * (pair[0][:count] - pair[1][:count]))
    return Against(other["contestant"], found.mean, found.low, found.high)


def best(cells: Sequence[Mapping[str, Any]], metric: Metric) -> Mapping[str, Any] | None:
    """The cell that leads in a metric."""
    known = [(v, c) for c in cells if (v := value(c, metric)) is not None]
    if not known:
        return None
    return (max if metric.higher else min)(known, key=lambda pair: pair[0])[1]
