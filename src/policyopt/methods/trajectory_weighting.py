"""Trajectory weighting: draw whole episodes of a data set by how good they were (arXiv 2306.13085).

A method that stays near the data's average behaviour wastes the few good episodes of a mixed data set. Drawn more often,
they make a data set whose behaviour is better; the method itself is unchanged. With T_i steps and the return G_i,

    p(transition of i) = exp(x_i / α) / Σ_j T_j exp(x_j / α),   α = 0.1
    return-weighted:     x = (G − min G) / (max G − min G)
    advantage-weighted:  the same of A = G − V(s_0), V the least-squares line with intercept of G on the first observation
    top-fraction:        the floor(K n) best episodes, uniform over their transitions, K = 10%

Returns are undiscounted and of the rewards as logged. Where all x are alike, up to rounding, sampling is uniform. The
softmax is over transitions, so that length counts; the released implementations differ, and this is the paper's.
An incomplete episode, of which the log misses the beginning or the end, has no return: its transitions are not drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch
from torch import Tensor

from policyopt.credit.episodes import complete_episodes, episode_lengths, episode_returns, first_rows
from policyopt.learners.data import Sampling
from policyopt.learners.off_policy import OffPolicy
from policyopt.types import Transitions

FAMILY = "offline"
KIND = "wrapper"
ROUNDING = 1e-6  # float32 observations: advantages below this share of the returns' spread are rounding


def normalized(values: Tensor, rounding: float = 0.0) -> Tensor:
    """[E] to 0 … 1 by its least and its greatest; zeros where these are no further apart than ``rounding``."""
    spread = values.max() - values.min()
    if float(spread) <= rounding:
        return torch.zeros_like(values)
    return (values - values.min()) / spread


def advantages(returns: Tensor, start: Tensor) -> Tensor:
    """Returns [E] less what a linear regression with intercept on first observations [E, S] expects."""
    design = torch.cat([start.double(), torch.ones(len(start), 1, dtype=torch.float64)], 1)
    fitted = torch.linalg.lstsq(design, returns[:, None], driver="gelsd").solution
    return returns - (design @ fitted)[:, 0]


def transition_probabilities(scores: Tensor, lengths: Tensor, temperature: float) -> Tensor:
    """The probability [E] of any one transition of each episode, from scores [E] and lengths [E]."""
    logits = scores.double() / temperature
    return (logits - torch.logsumexp(logits + lengths.double().log(), 0)).exp()


def best_episodes(returns: Tensor, fraction: float) -> Tensor:
    """The indices of the floor(fraction · E) episodes of the highest return, at least one."""
    count = max(1, int(fraction * len(returns) + 1e-9))
    return returns.topk(count).indices


def positive_sided_variance(returns: Tensor) -> float:
    """E[(G − E G)₊²]: the head-room that single episodes show over the average."""
    return float((returns - returns.mean()).clamp(min=0.0).square().mean())


def weighted_return(probability: Tensor, lengths: Tensor, returns: Tensor) -> float:
    """Σ q_i G_i with q_i = T_i p_i: the return of an episode as it is drawn."""
    return float((probability * lengths * returns).sum())


@dataclass(frozen=True, kw_only=True)
class EpisodeSampling(Sampling):
    """Episodes by their merit: transitions [E] of each are equally likely, as ``per_episode`` says."""

    def per_episode(self, returns: Tensor, lengths: Tensor, start: Tensor) -> Tensor:
        """The probability [E] of one transition, from returns, lengths [E] and first observations [E, S]."""
        raise NotImplementedError

    def probabilities(self, data: Transitions) -> Tensor:
        """Raises ValueError where the data don't say which episode a row belongs to, or none is complete."""
        if data.episode is None:
            raise ValueError(
                f"{type(self).__name__} draws whole episodes, and this data set doesn't say where they begin: it needs "
                "the column episode (data sets of minari:… have it)"
            )
        complete = complete_episodes(data)
        if not complete.any():
            raise ValueError(
                f"{type(self).__name__} draws complete episodes, and this data set has none: the log begins or ends in the "
                "middle of each"
            )
        returns, lengths = episode_returns(data.reward, data.episode), episode_lengths(data.episode)
        each, start = torch.zeros_like(returns), data.observation[first_rows(data.episode)]
        each[complete] = self.per_episode(returns[complete], lengths[complete], start[complete])
        return each[data.episode]


@dataclass(frozen=True, kw_only=True)
class ReturnWeighted(EpisodeSampling):
    """By the return. Raises ValueError for a temperature that isn't positive."""

    temperature: float = 0.1

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"the temperature must be positive, got {self.temperature:g}")

    def per_episode(self, returns: Tensor, lengths: Tensor, start: Tensor) -> Tensor:
        return transition_probabilities(normalized(returns), lengths, self.temperature)


@dataclass(frozen=True, kw_only=True)
class AdvantageWeighted(ReturnWeighted):
    """By the return beyond what the first observation lets expect."""

    def per_episode(self, returns: Tensor, lengths: Tensor, start: Tensor) -> Tensor:
        rounding = ROUNDING * float(returns.max() - returns.min()) + 1e-12 * float(returns.abs().max())
        scores = normalized(advantages(returns, start), rounding)
        return transition_probabilities(scores, lengths, self.temperature)


@dataclass(frozen=True, kw_only=True)
class TopFraction(EpisodeSampling):
    """The best episodes alone. Raises ValueError for a fraction outside (0, 1]."""

    fraction: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"the fraction must be above 0 and at most 1, got {self.fraction:g}")

    def per_episode(self, returns: Tensor, lengths: Tensor, start: Tensor) -> Tensor:
        kept = torch.zeros_like(returns)
        kept[best_episodes(returns, self.fraction)] = 1.0
        return kept / (kept * lengths).sum()


SAMPLINGS: dict[str, Sampling] = {
    "uniform": Sampling(),
    "return-weighted": ReturnWeighted(),
    "advantage-weighted": AdvantageWeighted(),
    "top-fraction": TopFraction(),
}


def sampled(method: OffPolicy, name: str) -> OffPolicy:
    """The offline method on data drawn as ``name`` of ``SAMPLINGS`` says. Raises ValueError where it can't be."""
    if name not in SAMPLINGS:
        near = get_close_matches(name, SAMPLINGS, n=1, cutoff=0.0)[0]
        raise ValueError(f"no sampling is called {name!r}; did you mean {near!r}? There are {', '.join(SAMPLINGS)}")
    if not isinstance(method, OffPolicy) or method.collector is not None:
        raise ValueError(
            "sampling weighs the rows of a data set: it needs an offline method, such as td3-bc, iql or bc"
        )
    return replace(method, sampling=SAMPLINGS[name])
