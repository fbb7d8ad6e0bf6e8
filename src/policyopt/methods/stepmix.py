"""StepMix: optimism that never falls below a safe baseline's value in any episode (arXiv 2306.06265).

A candidate follows the baseline for h₀ steps and the optimistic policy afterwards. The smallest h₀ whose pessimistic
value reaches the threshold γ = (1 − α) V(baseline), and its neighbour h₀ − 1, which does not, differ in one step
alone: mixing them there makes the value exactly linear in the weight, and the largest weight that still certifies γ
is played. ``epsmix`` tosses a coin once an episode between the optimistic policy and the baseline instead,
``offline`` knows the baseline from logged episodes alone, and ``all_or_nothing`` is the naive rule that they improve
on.

Where the paper is silent, or its constants leave nothing to be learned in a few thousand episodes:
- the bounds are UCBVI's, with one scale c = 0.1 on the bonus, the same above and below;
- a candidate's bounds use the variance of its own upper value; those of candidate 0 are then the optimistic plan's;
- bounds with a variance-aware bonus are only nearly linear in the weight. The weight is not corrected for that: TRUE
  values are linear, so bounds that hold for both neighbours certify their mixture;
- offline, V(baseline) is the log's mean return raised by two standard errors, and the baseline is uniform in states
  that the log never visits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from policyopt.learners.tabular import (
    Counts,
    EpisodicProblem,
    Exploration,
    Floats,
    Model,
    OptimisticPlanning,
    Requirement,
    Safeguard,
    TabularPolicy,
)
from policyopt.methods import ucbvi
from policyopt.types import generator

FAMILY = "constrained"
VARIANTS = ("epsmix", "offline", "all-or-nothing")


def switching_policies(baseline: Floats, optimistic: Floats) -> Floats:
    """The candidates [H+1, H, S, A] of two policies [H, S, A]: number h₀ follows the baseline in its first h₀ steps."""
    horizon = len(baseline)
    on_baseline = np.arange(horizon) < np.arange(horizon + 1)[:, None]
    return np.where(on_baseline[..., None, None], baseline, optimistic)


def certified_weight(certified: float, uncertified: float, threshold: float) -> float:
    """The largest weight ρ of the second with (1 − ρ) · certified + ρ · uncertified ≥ threshold."""
    return (certified - threshold) / (certified - uncertified)


@dataclass(frozen=True, kw_only=True)
class StepMixture(Exploration):
    """The optimistic policy where certified, the baseline while it is not itself, and else the mixture at one step."""

    def __call__(self, model: Model, optimistic: Floats, safeguard: Safeguard) -> TabularPolicy:
        candidates = switching_policies(safeguard.policy, optimistic)
        _, lower = model.bounds(candidates)
        certified = lower >= safeguard.threshold
        if certified[0] or not certified[-1]:
            return TabularPolicy.single(candidates[0 if certified[0] else -1])
        switch = int(certified.argmax())
        rho = certified_weight(lower[switch], lower[switch - 1], safeguard.threshold)
        return TabularPolicy.single(candidates[switch] + rho * (candidates[switch - 1] - candidates[switch]))


@dataclass(frozen=True, kw_only=True)
class EpisodeMixture(Exploration):
    """The same certificate with a coin tossed once an episode: it holds for the expectation over the coin."""

    def __call__(self, model: Model, optimistic: Floats, safeguard: Safeguard) -> TabularPolicy:
        pair = np.stack((optimistic, safeguard.policy))
        _, lower = model.bounds(pair)
        certified = lower >= safeguard.threshold
        if certified[0] or not certified[1]:
            return TabularPolicy.single(pair[0 if certified[0] else 1])
        weight = certified_weight(lower[1], lower[0], safeguard.threshold)
        return TabularPolicy(probabilities=pair, weights=np.array([weight, 1.0 - weight]))


@dataclass(frozen=True, kw_only=True)
class AllOrNothing(Exploration):
    """The naive rule: the optimistic policy or the baseline, which never visits what would certify the first."""

    def __call__(self, model: Model, optimistic: Floats, safeguard: Safeguard) -> TabularPolicy:
        _, lower = model.bounds(optimistic)
        return TabularPolicy.single(optimistic if lower >= safeguard.threshold else safeguard.policy)


@dataclass(frozen=True, kw_only=True)
class KnownBaseline(Requirement):
    """At least (1 − ``relaxation``) of the value of the problem's baseline, both of them known.

    Without relaxation the baseline is never certified, nor any mixture with it. Raises ValueError for a share outside
    [0, 1].
    """

    relaxation: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.relaxation <= 1.0:
            raise ValueError(f"relaxation is a share of the baseline's value, from 0 to 1, got {self.relaxation:g}")

    def __call__(self, problem: EpisodicProblem, counts: Counts, seed: int) -> Safeguard:
        baseline = _baseline(problem)
        return Safeguard(baseline, (1.0 - self.relaxation) * float(problem.value(baseline)))


@dataclass(frozen=True, kw_only=True)
class LoggedBaseline(KnownBaseline):
    """The baseline, its value and the first counts come from ``episodes`` that it played; nothing else is known of it.

    The threshold takes their mean return, raised by ``standard_errors`` of it against an estimate that is too low.
    """

    episodes: int = 500
    standard_errors: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes < 2:
            raise ValueError(f"a standard error needs at least two logged episodes, got {self.episodes}")

    def __call__(self, problem: EpisodicProblem, counts: Counts, seed: int) -> Safeguard:
        policy = TabularPolicy.single(_baseline(problem))
        states, actions, rewards = problem.play(policy.act, self.episodes, generator(seed, "log"))
        counts.add_episodes(states, actions, rewards)
        returns = rewards.sum(-1)
        value = returns.mean() + self.standard_errors * returns.std(ddof=1) / np.sqrt(self.episodes)
        return Safeguard(cloned_policy(counts), (1.0 - self.relaxation) * float(value))


def cloned_policy(counts: Counts) -> Floats:
    """Shares of the actions taken, [H, S, A]; uniform in states never visited."""
    visits = counts.visits
    total = visits.sum(-1, keepdims=True)
    return np.asarray(np.where(total > 0, visits / np.maximum(total, 1.0), 1.0 / visits.shape[-1]))


def _baseline(problem: EpisodicProblem) -> Floats:
    if problem.baseline is None:
        raise ValueError(f"{problem.name} has no baseline to stay close to: set the problem's baseline, [H, S, A]")
    return problem.baseline


def method() -> OptimisticPlanning:
    return replace(ucbvi.method(), exploration=StepMixture(), requirement=KnownBaseline())


def epsmix() -> OptimisticPlanning:
    return replace(method(), exploration=EpisodeMixture())


def offline() -> OptimisticPlanning:
    return replace(method(), requirement=LoggedBaseline())


def all_or_nothing() -> OptimisticPlanning:
    return replace(method(), exploration=AllOrNothing())
