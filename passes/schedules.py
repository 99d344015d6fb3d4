"""Which steps of a grid compute: sets of exactly `n` step indices out of `T`, step 0 first.

Every function returns increasing indices as a tuple of `n` ints with `0` as the first. Step 0
always computes because there is nothing yet to forecast from.

The published schedules are uniform in the step index (FORA, arXiv 2407.01425; TaylorSeer,
arXiv 2503.06923). Uniform in the model's own time coordinate and including the last step are
stronger standard choices. `balanced` puts equal shares of measured change between computed steps,
and `optimal` is a dynamic programme over the last two computed steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Schedule = tuple[int, ...]

DP_LIMIT = 128
"""Most steps for which `optimal` is tried: its tables grow as T^3 in memory, T^3 n in time."""


def spread(positions: npt.ArrayLike, steps: int) -> tuple[int, ...]:
    """Round wanted `positions` (increasing, in units of steps) to that many distinct indices.

    The first becomes 0. Where two round to the same index the later one moves on, and where that
    runs off the end the earlier ones move back, so the count is always exact.
    """
    index = np.rint(np.asarray(positions, dtype=np.float64)).astype(np.int64)
    count = len(index)
    index = np.clip(index, 0, steps - 1)
    index[0] = 0
    order = np.arange(count)
    index = np.maximum.accumulate(index - order) + order
    index = np.minimum(index, steps - count + order)
    return tuple(int(i) for i in index)


def uniform_index(steps: int, n: int, *, last: bool = False) -> tuple[int, ...]:
    """Equal gaps in the step index; `last` makes the final step one of the computed ones."""
    return spread(np.linspace(0, steps - 1 if last else steps, n, endpoint=last), steps)


def interval(steps: int, n: int) -> tuple[int, ...]:
    """Every N-th step, N the smallest with at most `n` computations; the rest warm up the start.

    FORA's and TaylorSeer's published form: a fixed interval, after a few full first steps.
    """
    gap = -(-steps // n)
    chosen = set(range(0, steps, gap))
    spare = (step for step in range(steps) if step not in chosen)
    while len(chosen) < n:
        chosen.add(next(spare))
    return tuple(sorted(chosen))


def uniform_coordinate(
    coordinate: Array, n: int, *, last: bool = False, end: float | None = None
) -> tuple[int, ...]:
    """Equal gaps in a strictly monotone `coordinate` [T] (timestep, sigma, accumulated change).

    Without `last`, the gaps divide the way to `end`, the coordinate after the final step (default:
    one more step of the last size), so that the final gap is as long as the others.
    """
    steps = len(coordinate)
    after = 2 * coordinate[-1] - coordinate[-2] if end is None else end
    stop = coordinate[-1] if last else after
    wanted = np.linspace(coordinate[0], stop, n, endpoint=last)
    axis = np.append(coordinate, stop) if not last else coordinate
    sign = 1.0 if axis[-1] >= axis[0] else -1.0
    return spread(np.interp(sign * wanted, sign * axis, np.arange(len(axis))), steps)


def warmed(
    steps: int, n: int, first: int, rest: Callable[[int, int], tuple[int, ...]]
) -> tuple[int, ...]:
    """`first` computed steps at the start, then `rest(steps', n')` on what is left."""
    first = min(first, n)
    if first == n:
        return tuple(range(n))
    tail = rest(steps - first + 1, n - first + 1)
    return (*range(first - 1), *(first - 1 + step for step in tail))


def balanced(gram: Array, c: Array, n: int, *, power: float, last: bool = True) -> tuple[int, ...]:
    """Equal shares of the c-weighted second difference of the outputs, raised to `power`.

    `gram` [T, T], `c` [T]. The local error of a linear forecast over a gap h grows as |y''| h^2 and
    its effect on the sample as h^3, so equal errors want a density of (c |y''|)^(1/3).
    """
    steps = len(c)
    if steps < 4:
        return uniform_index(steps, n, last=last)
    difference = np.zeros((steps, steps))
    for step in range(1, steps - 1):
        difference[step, step - 1 : step + 2] = (1.0, -2.0, 1.0)
    difference[0], difference[-1] = difference[1], difference[-2]
    bend = np.sqrt(np.maximum(np.sum((difference @ gram) * difference, axis=1), 0.0))
    density = (bend * np.abs(c)) ** power
    # A floor keeps every gap finite where the outputs happen to be straight.
    density += 0.05 * density.mean() + np.finfo(np.float64).tiny
    coordinate = np.concatenate(([0.0], np.cumsum(density)[:-1]))
    return uniform_coordinate(coordinate, n, last=last)


def segment_errors(gram: Array, x: Array, c: Array) -> Array:
    """W[i, j, k]: error in the final sample of forecasting steps j+1..k-1 linearly from i < j.

    `gram` [T, T], `x`, `c` [T]; returns [T, T, T + 1], the squared norm of
    `sum_t c_t (y_t - a_i(t) y_i - a_j(t) y_j)`, with i == j meaning plain reuse of y_j. Entries
    with k <= j or i > j are infinite.
    """
    steps = len(x)
    weighted = np.zeros((steps + 1, steps + 1))  # inner products of sums of c_t y_t over prefixes
    weighted[1:, 1:] = np.cumsum(np.cumsum(c[:, None] * c[None, :] * gram, axis=0), axis=1)
    mixed = np.zeros((steps, steps + 1))  # <y_i, sum of c_t y_t over t < k>
    mixed[:, 1:] = np.cumsum(gram * c[None, :], axis=1)
    mass = np.concatenate(([0.0], np.cumsum(c)))
    moment = np.concatenate(([0.0], np.cumsum(c * x)))

    i, j = np.arange(steps)[:, None, None], np.arange(steps)[None, :, None]
    k = np.arange(steps + 1)[None, None, :]
    start = j + 1
    total = mass[k] - mass[start]
    gap = np.where(i == j, 1.0, x[j] - x[i])
    from_j = np.where(i == j, total, (moment[k] - moment[start] - total * x[i]) / gap)
    from_i = total - from_j
    sums = weighted[k, k] - 2 * weighted[k, start] + weighted[start, start]
    cross_i, cross_j = mixed[i, k] - mixed[i, start], mixed[j, k] - mixed[j, start]
    error = (
        sums
        - 2 * (from_i * cross_i + from_j * cross_j)
        + from_i**2 * gram[i, i]
        + 2 * from_i * from_j * gram[i, j]
        + from_j**2 * gram[j, j]
    )
    return np.where((k > j) & (i <= j), np.maximum(error, 0.0), np.inf)


def optimal(gram: Array, x: Array, c: Array, n: int, *, power: float = 1.0) -> tuple[int, ...]:
    """Find the `n` steps with the least sum of segment errors, by dynamic programming.

    `gram` [T, T], `x`, `c` [T]. `power` 1 adds squared errors (segments independent), 0.5 adds
    norms (segments all to the same side). Falls back to `balanced` above `DP_LIMIT` steps.
    """
    steps = len(x)
    if steps > DP_LIMIT:
        return balanced(gram, c, n, power=1 / 3)
    cost = segment_errors(gram, x, c) ** power
    # best[i, j]: least cost so far with the last two computed steps i, j (i == j: only one yet)
    best = np.full((steps, steps), np.inf)
    best[0, 0] = 0.0
    came: list[npt.NDArray[np.int64]] = []
    for _ in range(n - 1):
        reach = best[:, :, None] + cost[:, :, :steps]  # [i, j, k]
        origin = np.argmin(reach, axis=0)  # [j, k]: the best i
        came.append(origin)
        best = np.take_along_axis(reach, origin[None], axis=0)[0]
    final = best + cost[:, :, steps]
    i, j = np.unravel_index(int(np.argmin(final)), final.shape)
    chosen = [int(j)]
    before = int(i)
    for origin in reversed(came):
        here = chosen[-1]
        chosen.append(before)
        before = int(origin[before, here])
    return tuple(reversed(chosen))


def standard_schedules(gram: Array, x: Array, c: Array, n: int) -> dict[str, Schedule]:
    """Every named schedule of exactly `n` steps, without repeats."""
    steps = len(x)
    end = float(x[-1] + (c[-1] / c[-2]) * (x[-1] - x[-2])) if c[-2] else None
    found: dict[str, Schedule] = {
        "uniform index": uniform_index(steps, n),
        "uniform index to last": uniform_index(steps, n, last=True),
        "interval": interval(steps, n),
        "uniform time": uniform_coordinate(x, n, end=end),
        "uniform time to last": uniform_coordinate(x, n, last=True),
    }
    for first in (2, 3):
        if n > first:
            found[f"first {first}, uniform index"] = warmed(
                steps, n, first, lambda t, k: uniform_index(t, k, last=True)
            )
            found[f"first {first}, uniform time"] = warmed(
                steps, n, first, lambda t, k: uniform_coordinate(x[-t:], k, last=True)
            )
    for power in (1 / 3, 1 / 2):
        found[f"balanced {power:.2g}"] = balanced(gram, c, n, power=power)
    for power in (1.0, 0.5):
        found[f"optimal {power:g}"] = optimal(gram, x, c, n, power=power)
    kept: dict[Schedule, str] = {}
    for name, chosen in found.items():
        kept.setdefault(chosen, name)
    return {name: chosen for chosen, name in kept.items()}
