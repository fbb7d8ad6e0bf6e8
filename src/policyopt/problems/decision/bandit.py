"""Contextual bandits with known rewards, and comparisons of their actions: problems whose every quantity is exact.

A policy is a table of probabilities [C, A] (C contexts, A actions), so that its value, its divergence from the reference,
its regret and, for general preferences, its duality gap are computed, not estimated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Bandit:
    """features [C, A, d] and reference logits [C, A] of a log-linear policy, true reward [C, A], and comparisons.

    preference [C, A, A]: the probability that the first action is preferred to the second; Bradley-Terry's of the reward
    where None. pairs [n, 3]: logged comparisons (context, winner, loser).
    """

    reward: Tensor
    features: Tensor
    reference: Tensor
    preference: Tensor | None = None
    pairs: Tensor = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.int64))
    name: str = "bandit"

    def __post_init__(self) -> None:
        shape = self.reward.shape
        if self.features.shape[:2] != shape or self.reference.shape != shape:
            raise ValueError(
                f"{self.name}: reward {tuple(shape)}, features {tuple(self.features.shape)} and reference "
                f"{tuple(self.reference.shape)} must agree in contexts and actions"
            )

    @property
    def reference_probability(self) -> Tensor:
        """[C, A]."""
        return self.reference.softmax(-1)

    def wins(self) -> Tensor:
        """[C, A, A]: the probability that the first action is preferred to the second."""
        if self.preference is not None:
            return self.preference
        return (self.reward[:, :, None] - self.reward[:, None, :]).sigmoid()

    def value(self, probability: Tensor) -> Tensor:
        """Expected reward, averaged over contexts: probability [C, A] → []."""
        return (probability * self.reward).sum(-1).mean()

    def divergence(self, probability: Tensor) -> Tensor:
        """KL(π ‖ reference), averaged over contexts."""
        logs = probability.clamp(min=1e-30).log() - self.reference.log_softmax(-1)
        return (probability * logs).sum(-1).mean()

    def optimum(self, beta: float) -> Tensor:
        """The policy [C, A] that maximises value - β divergence: reference · exp(reward / β), normalised."""
        return (self.reference.log_softmax(-1) + self.reward / beta).softmax(-1)

    def duality_gap(self, probability: Tensor, tau: float) -> Tensor:
        """max_p J(p, π) - min_p J(π, p) of the game with divergence weight τ, averaged over contexts (0 at Nash).

        2 [τ log Σ_y reference exp(P(y ≻ π)/τ) + τ KL(π ‖ reference)] - 1 (arXiv 2407.00617, §2).
        """
        against = (self.wins() @ probability[..., None]).squeeze(-1)
        best = tau * (self.reference.log_softmax(-1) + against / tau).logsumexp(-1).mean()
        return 2.0 * (best + tau * self.divergence(probability)) - 1.0

    def compare(self, context: Tensor, first: Tensor, second: Tensor, rng: torch.Generator) -> Tensor:
        """[n] True where the first action wins one drawn comparison."""
        return torch.rand(len(context), generator=rng, dtype=torch.float64) < self.wins()[context, first, second]

    def evaluate(self, act: Callable[[], Tensor], rng: torch.Generator) -> dict[str, float]:
        """Exact, from a policy that gives its probabilities [C, A] when it is called."""
        probability = act().detach()
        return {
            "eval/return": float(self.value(probability)),
            "eval/divergence": float(self.divergence(probability)),
        }


def logged(
    bandit: Bandit, sampler: Tensor, count: int, rng: torch.Generator, *, flips: float = 0.0, distinct: bool = False
) -> Tensor:
    """``count`` comparisons [count, 3] of two actions drawn from sampler [C, A], labels flipped at the rate ``flips``.

    distinct: the two actions of a pair differ.
    """
    context = torch.randint(len(sampler), (count,), generator=rng)
    first = torch.multinomial(sampler[context].float(), 1, generator=rng).squeeze(1)
    weights = sampler[context].float()
    if distinct:
        weights = weights.scatter(1, first[:, None], 0.0)
    second = torch.multinomial(weights, 1, generator=rng).squeeze(1)
    wins = bandit.compare(context, first, second, rng) ^ (torch.rand(count, generator=rng) < flips)
    return torch.stack([context, torch.where(wins, first, second), torch.where(wins, second, first)], 1)


def tabular(reward: Tensor, reference: Tensor | None = None, **options: Any) -> Bandit:
    """A bandit whose policy has a logit for every context and action."""
    contexts, actions = reward.shape
    features = torch.eye(contexts * actions, dtype=reward.dtype).view(contexts, actions, -1)
    start = torch.zeros_like(reward) if reference is None else reference
    return Bandit(reward=reward, features=features, reference=start, **options)
