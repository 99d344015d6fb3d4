"""Checks: how well each computed step of a plan could have been forecast, from its Gram matrix.

A computed step is the one place where a forecast can be compared with the truth at no cost in
model calls. What that comparison gives on the calibration samples is the yardstick for the guard
at run time. Also here: the Gram matrix in a few columns, small enough to travel with a plan.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .error_diffusion import Array

RIDGE = 1e-6
LARGEST_RANK = 12
SMALLEST_SHARE = 1e-9
"""Directions of a Gram matrix with less than this share of its trace are dropped."""
LEAST_RMS = 1e-3
"""Residuals below this are rounding, and no yardstick."""

Rows = tuple[tuple[float, ...], ...]


def checks_for(gram: Array, computed: Sequence[int], history: int) -> Rows:
    """For each computed step (rms, w_1 .. w_K): its forecast from the K computed ones before it.

    `gram` [T, T] is the mean over guidance branches, as each branch is checked by itself. The
    weights are those of least squares; rms is what they leave over of y, relative to |y|. A row of
    zeros where nothing precedes.
    """
    rows: list[tuple[float, ...]] = []
    for position, step in enumerate(computed):
        before = list(computed[max(position - history, 0) : position])[::-1]
        row = [0.0] * (history + 1)
        if before:
            inner = gram[np.ix_(before, before)]
            size = float(np.mean(np.diagonal(inner)))
            pull = max(RIDGE * size, np.finfo(np.float64).tiny ** 0.5)
            a = np.linalg.solve(inner + pull * np.eye(len(before)), gram[before, step])
            left = gram[step, step] - 2 * a @ gram[before, step] + a @ inner @ a
            power = max(float(gram[step, step]), np.finfo(np.float64).tiny)
            row[0] = max(float(np.sqrt(max(left, 0.0) / power)), LEAST_RMS)
            row[1 : 1 + len(before)] = [float(w) for w in a]
        rows.append(tuple(float(f"{v:.7g}") for v in row))
    return tuple(rows)


def low_rank(gram: Array) -> Rows:
    """B [T, R] with B B' close to `gram`: outputs change smoothly, so R is small."""
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    order = np.argsort(values)[::-1][:LARGEST_RANK]
    kept = [i for i in order if values[i] > SMALLEST_SHARE * max(float(values.sum()), 0.0)]
    basis = vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0.0))
    return tuple(tuple(float(f"{v:.9g}") for v in row) for row in basis)


def from_low_rank(basis: Rows) -> Array:
    """The Gram matrix [T, T] again."""
    b = np.asarray(basis, dtype=np.float64).reshape(len(basis), -1)
    return b @ b.T
