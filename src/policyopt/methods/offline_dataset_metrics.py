"""What a data set lets expect before anyone trains: trajectory quality and state-action coverage (arXiv 2111.04714).

    TQ    = (g(D) − g_random) / (g_best − g_random),   g = mean undiscounted return of the complete episodes
    SACo  = u(D) / u(D_ref),  lSACo = log u(D) / log u(D_ref),   u = number of different (s, a)

D_ref is the replay of the online learner, of the same size. Numbers are digitized with 100 edges between limits that
are the reference's for every data set; a choice counts as it is. An episode of which the log misses the beginning or
the end counts for coverage, not for the return. Unique pairs are counted exactly, by merging one column after the
other. The measures are meant for deterministic problems: noise in the transitions looks like coverage.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from policyopt.credit.episodes import complete_episodes, episode_lengths, episode_returns
from policyopt.methods.trajectory_weighting import positive_sided_variance
from policyopt.rollouts.logs import beginning, joined
from policyopt.types import Transitions

FAMILY = "analyses"
KIND = "analysis"


def trajectory_quality(returns: Tensor, random: float, best: float) -> float:
    """TQ of returns [E]. Raises ValueError where best and random are the same."""
    if best == random:
        raise ValueError(f"trajectory quality needs two different reference returns, got {best:g} twice")
    return (float(returns.mean()) - random) / (best - random)


def coverage(unique: int, reference: int) -> float:
    """SACo."""
    return unique / reference


def log_coverage(unique: int, reference: int) -> float:
    """lSACo. Raises ValueError for a reference of one pair, whose logarithm is zero."""
    if reference < 2:
        raise ValueError("log coverage needs a reference of at least two different pairs")
    return math.log(unique) / math.log(reference)


def performance(evaluations: NDArray[np.float64], random: float, best: float) -> float:
    """100 · (the greatest of the mean over runs − random) / (best − random), of evaluation returns [R, K]."""
    return 100.0 * (float(evaluations.mean(0).max()) - random) / (best - random)


class Limits(NamedTuple):
    """Least and greatest of each digitized number, [S + A]."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


def limits(data: Transitions) -> Limits:
    """Of a data set's observations and actions."""
    pairs = _numbers(data)
    return Limits(pairs.min(0), pairs.max(0))


def digitized(values: NDArray[np.float64], low: float, high: float, bins: int = 100) -> NDArray[np.int64]:
    """Bins of [N]: 0 below ``low``, ``bins`` from ``high`` on, ``low`` itself 1."""
    return np.digitize(values, np.linspace(low, high, bins))


def unique_pairs(data: Transitions, within: Limits | None = None, bins: int = 100) -> int:
    """The number of different (s, a), digitized between ``within``, its own limits where None."""
    return _different(_numbers(data), limits(data) if within is None else within, bins)


def unique_states(data: Transitions, within: Limits | None = None, bins: int = 100) -> int:
    """The number of different s; ``within`` as in ``unique_pairs``."""
    return _different(_numbers(data)[:, : data.observation.shape[1]], limits(data) if within is None else within, bins)


def _numbers(data: Transitions) -> NDArray[np.float64]:
    action = data.action.reshape(len(data), -1)
    return np.concatenate([data.observation.numpy(), action.numpy()], 1).astype(np.float64)


def _different(numbers: NDArray[np.float64], within: Limits, bins: int) -> int:
    label = np.zeros(len(numbers), np.int64)
    count = 1
    for column, low, high in zip(numbers.T, *within, strict=False):
        label = label * (bins + 1) + digitized(column, float(low), float(high), bins)
        found, label = np.unique(label, return_inverse=True)
        count = len(found)
    return count


def mixed(random: Transitions, expert: Transitions, share: float = 0.8) -> Transitions:
    """The first ``share`` of a data set of random actions, then so many expert transitions as fill its size."""
    size, first = len(random), round(share * len(random))
    if len(expert) < size - first:
        raise ValueError(f"the mixture needs {size - first} expert transitions, there are {len(expert)}")
    return joined([beginning(random, first), beginning(expert, size - first)])


class Summary(NamedTuple):
    """A data set in numbers; returns and lengths [E] of its complete episodes. NaN where no reference was given."""

    rows: int
    episodes: int
    returns: Tensor
    lengths: Tensor
    states: int
    pairs: int
    quality: float
    coverage: float
    log_coverage: float
    positive_variance: float
    zero_rewards: float


def summary(
    data: Transitions, random: float = math.nan, best: float = math.nan, reference: Transitions | None = None
) -> Summary:
    """All measures of a log with episodes. Raises ValueError where the reference has another number of rows."""
    if reference is not None and len(reference) != len(data):
        raise ValueError(f"coverage compares data sets of one size: {len(data)} rows against {len(reference)}")
    kept = complete_episodes(data)
    returns = episode_returns(data.reward, data.episode)[kept]
    within = limits(data if reference is None else reference)
    pairs, base = unique_pairs(data, within), math.nan if reference is None else unique_pairs(reference, within)
    return Summary(
        rows=len(data),
        episodes=len(kept),
        returns=returns,
        lengths=episode_lengths(data.episode)[kept],
        states=unique_states(data, within),
        pairs=pairs,
        quality=trajectory_quality(returns, random, best),
        coverage=pairs / base,
        log_coverage=math.log(pairs) / math.log(base),
        positive_variance=positive_sided_variance(returns),
        zero_rewards=float((data.reward == 0).double().mean()),
    )
