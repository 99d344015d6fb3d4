"""Forecasters: the weights with which a skipped step is made from the last computed outputs.

A forecaster is a small frozen value with a `name`, a `history` length K and a `prior`; what turns
priors into weights, and for `EDF` corrects them, is `error_diffusion.diffuse`. See there for the
notation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .error_diffusion import Array, Indices, rows

RESPONSE = 0.3
"""Chosen, as `ANSWERS`, by replays of calibration samples of the four small models."""


@dataclass(frozen=True)
class Taylor:
    """Finite-difference Taylor forecast in the step index (TaylorSeer, arXiv 2503.06923).

    The derivatives are the backward differences that its authors keep: the i-th is the change of
    the (i-1)-th between the last two computed steps over their distance. Order 0 is plain reuse.
    """

    order: int
    beta: None = None
    ridge: float = 0.0
    response: float = 0.0

    @property
    def name(self) -> str:
        """`reuse` or `taylor-<order>`."""
        return f"taylor-{self.order}" if self.order else "reuse"

    @property
    def history(self) -> int:
        """One more than the order."""
        return self.order + 1

    def prior(self, last: Indices, count: Indices, step: int, x: Array) -> Array:
        """Sum over i of D_i (t - s)^i / i!, D_i from as many outputs as there are."""
        batch, depth = last.shape
        gap = np.maximum(last[:, :-1] - last[:, 1:], 1).astype(np.float64)
        derivatives = [np.tile(np.eye(depth)[m], (batch, 1)) for m in range(depth)]
        weights = derivatives[0].copy()
        term = np.ones(batch)
        for order in range(1, depth):
            derivatives = [
                (derivatives[m] - derivatives[m + 1]) / gap[:, m, None]
                for m in range(depth - order)
            ]
            term = term * (step - last[:, 0]) / order
            weights += np.where(count > order, term, 0.0)[:, None] * derivatives[0]
        return weights

    def rows(self, schedule: Sequence[int], x: Array, c: Array, gram: Array) -> Array:
        """Weights [T, K] for one schedule; see `rows`."""
        return rows(self, schedule, x, c, gram)


@dataclass(frozen=True)
class Lagrange:
    """The polynomial through the last `order + 1` computed points in the time coordinate."""

    order: int
    beta: None = None
    ridge: float = 0.0
    response: float = 0.0

    @property
    def name(self) -> str:
        """`lagrange-<order>`."""
        return f"lagrange-{self.order}"

    @property
    def history(self) -> int:
        """One more than the order."""
        return self.order + 1

    def prior(self, last: Indices, count: Indices, step: int, x: Array) -> Array:
        """Lagrange's basis at `x[step]`; of lower order while fewer points exist."""
        return _lagrange(last, count, step, x)

    def rows(self, schedule: Sequence[int], x: Array, c: Array, gram: Array) -> Array:
        """Weights [T, K] for one schedule; see `rows`."""
        return rows(self, schedule, x, c, gram)


@dataclass(frozen=True)
class EDF:
    """Error-diffused forecasting: least squares towards y_t plus a share of the error so far.

    Plain least squares (beta 0) leans to the same side at every skipped step, so its errors add
    up in the sample. Asking each step to also undo `beta` of what has accumulated makes them
    cancel, as in image half-toning (Floyd and Steinberg 1976) or sigma-delta modulation. The prior
    is Lagrange's polynomial, to which the ridge pulls where the Gram matrix says little. `response`
    is the share of the model's `answers` to an error in the sample that rows are solved for; the
    rest is for none. Few directions answer much, but a plan whose errors grow in those is bad.
    """

    k: int = 3
    beta: float = 0.3
    ridge: float = 1e-4
    response: float = RESPONSE

    @property
    def name(self) -> str:
        """`edf(k=..,beta=..,ridge=..)`, with the response if it is not the usual one."""
        other = "" if self.response == RESPONSE else f",response={self.response:g}"
        return f"edf(k={self.k},beta={self.beta:g},ridge={self.ridge:g}{other})"

    @property
    def history(self) -> int:
        """`k`."""
        return self.k

    def prior(self, last: Indices, count: Indices, step: int, x: Array) -> Array:
        """Lagrange's basis at `x[step]`."""
        return _lagrange(last, count, step, x)

    def rows(self, schedule: Sequence[int], x: Array, c: Array, gram: Array) -> Array:
        """Weights [T, K] for one schedule; see `rows`."""
        return rows(self, schedule, x, c, gram)


def _lagrange(last: Indices, count: Indices, step: int, x: Array) -> Array:
    depth = last.shape[1]
    points = x[last]
    weights = np.ones(points.shape)
    for j in range(depth):
        for m in range(depth):
            if m != j:
                gap = np.where(count > max(j, m), points[:, j] - points[:, m], 1.0)
                factor = (x[step] - points[:, m]) / gap
                weights[:, j] *= np.where(count > m, factor, 1.0)
    return np.where(np.arange(depth)[None, :] < count[:, None], weights, 0.0)
