"""Trajectories of a guided flow model, many at once, and a pool of points on them.

Rectified flow: x = (1 - sigma) data + sigma noise, and dx / dsigma = velocity. Noise levels are the
sampler's, sigma = shift u / (1 + (shift - 1) u) for equal steps of u. Nothing but the model and its
prompts is needed: no clips.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Points:
    """N points of trajectories.

    Attributes:
        x: noisy latents [N, C, T, h, w].
        sigma: noise levels [N], 0 to 1.
        prompt: int64 [N], which prompt each follows.
        target: what belongs to the point, of x's shape: the guided velocity there, or the end of
            its trajectory.

    """

    x: Tensor
    sigma: Tensor
    prompt: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, chosen: Tensor | slice) -> Points:
        return Points(*(getattr(self, f.name)[chosen] for f in fields(self)))

    @staticmethod
    def joined(parts: list[Points]) -> Points:
        """Concatenate."""
        return Points(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Points)))


@dataclass(frozen=True)
class Start:
    """Where trajectories begin: latents [N, …], noise levels [N], prompts [N]."""

    x: Tensor
    sigma: Tensor
    prompt: Tensor


def shifted(u: Tensor, shift: float) -> Tensor:
    """Noise level of a place u in 0..1 on the sampler's grid."""
    return shift * u / (1 + (shift - 1) * u)


def place(sigma: Tensor, shift: float) -> Tensor:
    """The inverse of `shifted`."""
    return sigma / (shift - (shift - 1) * sigma)


class Trajectories:
    """`count` trajectories, each at its own noise level; one that ends makes room for a new one.

    A whole trajectory has `fewest` to `most` steps of Adams and Bashforth's second order, one that
    begins later its share of them.
    """

    def __init__(
        self,
        velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
        begin: Callable[[int], Start],
        count: int,
        *,
        shift: float,
        fewest: int = 16,
        most: int = 32,
    ) -> None:
        self.velocity, self.begin = velocity, begin
        self.shift, self.fewest, self.most = shift, fewest, most
        start = begin(count)
        self.x, self.prompt = start.x.clone(), start.prompt.clone()
        self.u, self.du = torch.zeros(count), torch.zeros(count)
        self.before, self.step_before = torch.zeros_like(self.x), torch.zeros(count)
        self.past: list[list[Points]] = [[] for _ in range(count)]
        self._place(torch.arange(count), start)

    def _place(self, rows: Tensor, start: Start) -> None:
        self.x[rows], self.prompt[rows] = start.x, start.prompt
        u = place(start.sigma, self.shift)
        whole = torch.randint(self.fewest, self.most + 1, (len(rows),))
        self.u[rows], self.du[rows] = u, u / (u * whole).ceil()
        self.step_before[rows] = 0.0
        for row in rows.tolist():
            self.past[row] = []

    @torch.no_grad()
    def step(self) -> tuple[Points, list[Points]]:
        """Go one step: the points that were left, with their velocities, and what has ended.

        An ended trajectory is given whole, first point first, with its end as the target of each.
        """
        sigma = shifted(self.u, self.shift)
        velocity = self.velocity(self.x, sigma, self.prompt)
        points = Points(self.x.clone(), sigma, self.prompt.clone(), velocity)
        # Half a step of rounding must not become a step of its own.
        u = torch.where(self.u < 1.5 * self.du, 0.0, self.u - self.du)
        step = shifted(u, self.shift) - sigma
        ratio = torch.where(self.step_before != 0, step / (2 * self.step_before), 0.0)
        self.x += _wide(step) * (velocity + _wide(ratio) * (velocity - self.before))
        self.u, self.before, self.step_before = u, velocity, step
        for row, journey in enumerate(self.past):
            journey.append(points[torch.tensor([row])])
        ended = (u == 0).nonzero().flatten()
        whole = [self._ended(row) for row in ended.tolist()]
        if len(ended):
            self._place(ended, self.begin(len(ended)))
        return points, whole

    def _ended(self, row: int) -> Points:
        journey = Points.joined(self.past[row])
        end = self.x[row].expand_as(journey.x)
        return Points(journey.x, journey.sigma, journey.prompt, end.clone())


class Pool:
    """The latest points, at most `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.kept: list[Points] = []

    def add(self, points: Points) -> None:
        """Put a trajectory's points in; the oldest ones leave."""
        self.kept.append(points)
        while sum(map(len, self.kept)) > self.capacity:
            self.kept.pop(0)

    def draw(self, count: int) -> Points:
        """Draw at random, with replacement."""
        ends = torch.tensor([len(points) for points in self.kept]).cumsum(0)
        chosen = torch.randint(int(ends[-1]), (count,))
        owner = torch.bucketize(chosen, ends, right=True).tolist()
        parts: list[Points] = []
        for index, which in zip(chosen.tolist(), owner, strict=True):
            points = self.kept[which]
            parts.append(points[torch.tensor([index - int(ends[which]) + len(points)])])
        return Points.joined(parts)


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1, 1)
