"""Measures of a set of return vectors, all maximised: a front is [F, K], F vectors of K objectives."""

from __future__ import annotations

from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Front: TypeAlias = NDArray[np.float64]


def non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """[F] True for vectors that no other dominates (as good everywhere, better somewhere); the first of equals counts."""
    import moocore

    kept: NDArray[np.bool_] = np.asarray(moocore.is_nondominated(_front(points), maximise=True), bool)
    return kept


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """The volume that the front dominates above the reference point [K]."""
    import moocore

    front = _front(points)
    return float(moocore.hypervolume(front, ref=np.asarray(reference, float), maximise=True)) if len(front) else 0.0


def crowding_distance(points: ArrayLike) -> Front:
    """[F]: how far apart a vector's neighbours are, over objectives (NSGA-II: Deb et al. 2002, §III-B).

    Σ_i (f_i(next) - f_i(previous)) / (max f_i - min f_i); infinite at the ends of an objective, which counts for nothing
    where it is the same for all.
    """
    front = _front(points)
    distance = np.zeros(len(front))
    for values in front.T:
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]]
        if span > 0.0:
            distance[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
            distance[order[[0, -1]]] = np.inf
    return distance if len(front) > 2 else np.full(len(front), np.inf)


def sparsity(points: ArrayLike) -> float:
    """Σ over objectives of squared gaps between neighbours, divided by F - 1 (arXiv 2410.02236); 0 for one vector."""
    front = np.sort(_front(points), axis=0)
    return float(np.square(np.diff(front, axis=0)).sum() / max(len(front) - 1, 1))


def expected_utility(points: ArrayLike, preferences: ArrayLike) -> float:
    """Mean over preferences [W, K] of the best preference · return in the front."""
    return float((np.asarray(preferences, float) @ _front(points).T).max(1).mean())


def simplex_grid(objectives: int, spacing: float) -> Front:
    """All preferences [W, K] whose entries are multiples of ``spacing``; W = C(1/spacing + K - 1, K - 1), in
    lexicographic order. Raises ValueError where 1 is no multiple of the spacing."""
    parts = round(1.0 / spacing) if spacing > 0 else 0
    if parts < 1 or abs(parts * spacing - 1.0) > 1e-9:
        raise ValueError(f"the spacing of preferences must divide 1 evenly, such as 0.5 or 0.2, got {spacing}")
    chosen = list(combinations(range(parts + objectives - 1), objectives - 1))
    bars = np.array(chosen, int).reshape(len(chosen), objectives - 1)
    ends = np.pad(bars, ((0, 0), (1, 1)), constant_values=(-1, parts + objectives - 1))
    return (np.diff(ends, axis=1) - 1) / parts


def _front(points: ArrayLike) -> Front:
    front = np.asarray(points, np.float64)
    if front.ndim != 2 or not np.isfinite(front).all():
        raise ValueError(f"a front is a finite array [F, K], got shape {front.shape}: {front}")
    return front
