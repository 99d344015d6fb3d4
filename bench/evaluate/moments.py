"""Mean and covariance of a stream of features, and the Fréchet distance between two streams.

Sums and outer products are kept in float64. Floating-point sums depend on their order, so two runs
give equal bits only if rows come in the same order and in the same pieces: `of_blocks` takes
finished blocks by index, whoever made them and whenever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """Number of rows, their sum [D], and the sum of their outer products [D, D], float64.

    Rows are taken relative to `origin` [D] (any point near the data), which keeps the difference of
    large sums small.
    """

    origin: Tensor
    count: int
    total: Tensor
    outer: Tensor

    @staticmethod
    def empty(origin: Tensor) -> Moments:
        width = len(origin)
        zeros = torch.zeros(width, width, dtype=torch.float64)
        return Moments(origin.double(), 0, torch.zeros(width, dtype=torch.float64), zeros)

    @staticmethod
    def of_blocks(blocks: Iterable[Tensor]) -> Moments:
        """Statistics of blocks [n_k, D] in their order; the first block's first row is the origin.

        Raises:
            ValueError: there is no row at all.

        """
        found: Moments | None = None
        for block in blocks:
            if found is None and len(block):
                found = Moments.empty(block[0])
            if found is not None:
                found.add(block)
        if found is None:
            raise ValueError("no samples")
        return found

    def add(self, rows: Tensor) -> None:
        """Take in rows [n, D]."""
        centred = rows.double() - self.origin
        self.count += len(rows)
        self.total += centred.sum(0)
        self.outer += centred.T @ centred

    def merge(self, other: Moments) -> Moments:
        """Add another stream's sums; raises ValueError if it has another origin."""
        if not torch.equal(self.origin, other.origin):
            raise ValueError("only statistics of the same origin can be merged")
        return Moments(
            self.origin,
            self.count + other.count,
            self.total + other.total,
            self.outer + other.outer,
        )

    @property
    def mean(self) -> Tensor:
        return self.origin + self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """Unbiased [D, D]; raises ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two samples, got {self.count}")
        mean = self.total / self.count
        return (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2) (Heusel et al., 2017).

    The last trace is that of (R C2 R)^(1/2) with R the symmetric root of C1: only symmetric
    eigenproblems, stable for singular covariances.
    """
    c1, c2 = first.covariance, second.covariance
    values, vectors = torch.linalg.eigh(c1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ c2 @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    shift = (first.mean - second.mean).square().sum()
    return max(float(shift + c1.trace() + c2.trace() - 2 * cross), 0.0)
