"""Statistics over seeds: intervals, interquartile means, curves on a common axis.

Seeds are resampled, never episodes of one seed: what varies between two runs of a method is the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, stats

Array: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[..., Any]  # (values, axis=…) -> values without that axis


class Interval(NamedTuple):
    """A statistic over seeds with its confidence interval; infinite bounds where a single seed knows no spread."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        if not np.isfinite([self.low, self.high]).all():
            return f"{self.estimate:.3g}"
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interquartile_mean(values: ArrayLike, axis: int = 0) -> Any:
    """Mean of the middle half: a quarter of the values, rounded down, is cut from either end (arXiv 2108.13264)."""
    return stats.trim_mean(values, 0.25, axis=axis)


def bootstrap_interval(values: ArrayLike, statistic: Statistic = np.mean, level: float = 0.95) -> Interval:
    """Confidence interval of a statistic of ``values`` [S], one number a seed; the method is ``bootstrap_band``'s."""
    estimate, low, high = bootstrap_band(np.asarray(values, dtype=np.float64)[:, None], statistic, level)
    return Interval(float(estimate[0]), float(low[0]), float(high[0]))


def bootstrap_band(
    values: Array, statistic: Statistic = np.mean, level: float = 0.95, resamples: int = 9999
) -> tuple[Array, Array, Array]:
    """Estimate, low and high [X] of a statistic over the S seeds of ``values`` [S, X], pointwise, deterministic.

    The interval is the percentile bootstrap over seeds, its tails moved out to Φ(−t √(S/(S−1))), t the quantile of
    Student's distribution with S − 1 degrees, because the plain one is too narrow for few seeds (Hesterberg, arXiv
    1411.5279). Resampling cannot leave the range of the data, so for a symmetric distribution it cannot cover more
    than 1 − 2^(1−S); where that is less than ``level`` (S < 6 at 0.95), the interval is estimate ± t √(S/(S−1)) times
    the bootstrap's standard error, which for a mean is Student's. Seeds that all agree give an interval without width,
    a single seed an infinite one. Measured coverage of a mean at 0.95, S = 3 to 20: normal 0.94 to 0.95, uniform 0.92
    to 0.95, exponential 0.88 (S ≤ 8) to 0.93.
    """
    seeds = len(values)
    if not seeds or not 0 < level < 1:
        raise ValueError(f"an interval needs at least one seed and a level between 0 and 1, got {seeds} and {level}")
    estimate: Array = np.asarray(statistic(values, axis=0))
    if seeds == 1:
        return estimate, np.full_like(estimate, -np.inf), np.full_like(estimate, np.inf)
    chosen = np.random.default_rng(0).integers(seeds, size=(resamples, seeds))
    draws = np.asarray(statistic(values[chosen], axis=1))
    reach = stats.t.ppf((1 + level) / 2, seeds - 1) * np.sqrt(seeds / (seeds - 1))
    if 2.0 ** (1 - seeds) > 1 - level:
        spread = reach * draws.std(axis=0)
        return estimate, estimate - spread, estimate + spread
    tail = stats.norm.sf(reach)
    low, high = np.quantile(draws, (tail, 1 - tail), axis=0)
    return estimate, low, high


def on_common_axis(curves: Sequence[tuple[ArrayLike, ArrayLike]], points: int = 200) -> tuple[Array, Array]:
    """Seeds' curves (x, y) on one axis: x [X], y [S, X], by linear interpolation over the range that all of them cover.

    The axis is the union of their points, or ``points`` equal steps where the union is longer.
    """
    read = [(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)) for x, y in curves]
    if not read or any(x.shape != y.shape or x.ndim != 1 or not x.size for x, y in read):
        raise ValueError(
            f"every curve needs as many y as x and at least one, got {[(x.shape, y.shape) for x, y in read]}"
        )
    if any((np.diff(x) < 0).any() for x, _ in read):
        raise ValueError("a curve's x must not decrease: costs on an axis are totals so far, not those of each step")
    start, end = max(x[0] for x, _ in read), min(x[-1] for x, _ in read)
    axis = np.unique(np.concatenate([x for x, _ in read]))
    axis = axis[(axis >= start) & (axis <= end)]
    if not axis.size:
        raise ValueError("the curves share no stretch of the x axis")
    axis = axis if axis.size <= points else np.linspace(start, end, points)
    return axis, np.stack([np.interp(axis, x, y) for x, y in read])


def area_under_curve(x: ArrayLike, y: ArrayLike) -> Any:
    """Mean height of curves ``y`` [..., X] over ``x`` [X] (trapezoids divided by the width): the unit is y's own."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return y[..., -1] if x[-1] == x[0] else integrate.trapezoid(y, x, axis=-1) / (x[-1] - x[0])
