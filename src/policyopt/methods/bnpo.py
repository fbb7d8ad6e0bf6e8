"""BNPO: rewards normalized by a Beta distribution that is fitted to each batch (arXiv 2506.02864).

The success rates p of a batch's prompts are spread like a Beta(a, b), fitted by moments. The advantage is (R - p) / f(p),
f being the density of Beta(1 + a/3, 1 + b/3), the choice that minimises the gradient's variance where the score norm does
not depend on p. REINFORCE with a group baseline is the case (1, 1); GRPO, up to the factor π/8, the case (3/2, 3/2).

    method        the sum of the reward, rescaled to [0, 1]
    decomposed    the same for each component of the reward with a weight, averaged

Where the paper's code divides by zero (all p equal) the density is that of (1, 1); groups of one are refused.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from policyopt.credit.groups import Credit, group_index, group_mean, over_steps, several
from policyopt.learners.on_policy import OnPolicy
from policyopt.methods import grpo
from policyopt.objectives.estimators import SequenceSum
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip
from policyopt.types import Rollouts

FAMILY = "language"
VARIANTS = ("decomposed",)


def beta_parameters(success: Tensor) -> tuple[float, float]:
    """Success rates of the prompts [U] → (α, β) of the normalizing density.

    Moments with the unbiased variance: c = μ(1 - μ)/v - 1, a = cμ, b = c(1 - μ); α = max(1, 1 + a/3), β likewise.
    (1, 1) for a single prompt or without variance.
    """
    if len(success) < 2 or float(variance := success.double().var()) == 0.0:
        return 1.0, 1.0
    mean = float(success.double().mean())
    common = mean * (1 - mean) / float(variance) - 1
    return max(1.0, 1 + common * mean / 3), max(1.0, 1 + common * (1 - mean) / 3)


def beta_density(success: Tensor, alpha: float, beta: float) -> Tensor:
    """f(p; α, β) of each success rate, any shape."""
    p = success.double()
    first, second = p.new_tensor(alpha - 1), p.new_tensor(beta - 1)  # xlogy(0, 0) = 0: no NaN at the corners of (1, 1)
    normalizer = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    return (torch.xlogy(first, p) + torch.xlogy(second, 1 - p) - normalizer).exp()


def beta_normalized(reward: Tensor, group: Tensor, cap: float = 1e6) -> Tensor:
    """min(1 / f(p), cap) · (R - p) of rewards in [0, 1]: reward [N], group [N] → [N]. Raises for a group of one."""
    index, size = group_index(group)
    several(size, "Beta normalization")
    mean = group_mean(reward, group)
    success = torch.zeros(len(size), dtype=reward.dtype, device=reward.device).index_copy_(0, index, mean)
    alpha, beta = beta_parameters(success)
    weight = (1 / beta_density(mean, alpha, beta)).clamp(max=cap)
    return (weight * (reward - mean)).to(reward.dtype)


@dataclass(frozen=True, kw_only=True)
class BetaNormalized(Credit):
    """Beta-normalized advantages of the reward; ``low`` and ``high`` are the least and largest reward possible."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "group")
    gives: ClassVar[tuple[str, ...]] = ("advantage",)
    low: float = 0.0
    high: float = 1.0
    cap: float = 1e6

    def rescaled(self, reward: Tensor) -> Tensor:
        if bool((reward < self.low).any() | (reward > self.high).any()):
            raise ValueError(
                f"rewards lie in [{float(reward.min()):g}, {float(reward.max()):g}], but Beta normalization was told "
                f"[{self.low:g}, {self.high:g}]: set credit.0.low and credit.0.high to the least and largest reward"
            )
        return (reward - self.low) / (self.high - self.low)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        advantage = beta_normalized(self.rescaled(batch.scores["reward"]), batch.group, self.cap)
        return batch.replace(advantage=over_steps(advantage, batch))


@dataclass(frozen=True, kw_only=True)
class BetaDecomposed(BetaNormalized):
    """The mean of the Beta-normalized advantages of the named components of the score, each with its own fit."""

    components: tuple[str, ...] = ("accuracy", "format")

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        parts = [beta_normalized(self.rescaled(batch.scores[n]), batch.group, self.cap) for n in self.components]
        return batch.replace(advantage=over_steps(torch.stack(parts).mean(0), batch))


def method() -> OnPolicy:
    clip = RatioClip(low=0.2, high=0.28, dual=10.0)
    objective = PolicyGradient(stabilization=clip, aggregation=SequenceSum())
    return replace(grpo.method(), credit=(BetaNormalized(),), objective=objective)


def decomposed() -> OnPolicy:
    return replace(method(), credit=(BetaDecomposed(),))
