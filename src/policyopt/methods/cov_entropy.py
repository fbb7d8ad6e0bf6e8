"""Clip-Cov and KL-Cov: keep the policy's entropy by restraining the few tokens that use it up (arXiv 2505.22617).

For a softmax policy the entropy falls by the covariance of log-probability and advantage, and a tiny share of tokens carries
most of it:  Cov_i = (log π_i - mean log π)(A_i - mean A)  over the valid tokens of the minibatch, with the current policy.

    method (clip_cov)   a share r of the tokens with Cov in a window, picked at random, loses its gradient; ratio clip [0, 2]
    kl_cov              the share k with the largest Cov is pulled to the policy that sampled: + β |log π - log π_old|, no clip
    clip_higher         the baseline: ratio clip 0.8 to 1.28

Groups whose responses are all right or all wrong are left out. Dropped tokens count in the divisor. Covariances and picks are of
the whole minibatch (the authors' code: of a micro-batch). Without a second update on the same samples KL-Cov does nothing.

``entropy_law`` fits what performance buys with entropy, R = -a exp(H) + b, whose ceiling at H = 0 is b - a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from policyopt.credit.groups import Credit, GroupNormalized, group_deviation
from policyopt.learners.on_policy import OnPolicy
from policyopt.methods import grpo
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip, Regularizer, TokenMean, log_ratio
from policyopt.objectives.selection import SelectedPolicyGradient, Selector, WithoutSelected
from policyopt.rollouts.language import Groups
from policyopt.types import Outputs, Rollouts

FAMILY = "language"
VARIANTS = ("clip_cov", "kl_cov", "clip_higher")


def covariance(logp: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """(log π - mean)(A - mean) [N, T], means over the True steps of ``mask``; zero elsewhere."""
    count = mask.sum().clamp(min=1)
    centred = [(x - (x * mask).sum() / count) * mask for x in (logp, advantage)]
    return centred[0] * centred[1]


class EntropyLaw(NamedTuple):
    """R = -a exp(H) + b: the coefficients, the ceiling b - a, and the share of variance that the fit explains."""

    a: float
    b: float
    ceiling: float
    r_squared: float


def entropy_law(entropy: Sequence[float], score: Sequence[float]) -> EntropyLaw:
    """Least squares of the score on -exp(H); H in nats a token. Raises ValueError for fewer than three points."""
    if len(entropy) != len(score) or len(score) < 3:
        raise ValueError(
            f"the entropy law needs three points or more, got {len(entropy)} entropies, {len(score)} scores"
        )
    x, y = -np.exp(np.asarray(entropy, float)), np.asarray(score, float)
    (a, b), *_ = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)
    spread = float(np.square(y - y.mean()).sum())
    left = float(np.square(y - a * x - b).sum())
    return EntropyLaw(float(a), float(b), float(b - a), 1.0 - left / spread if spread else float("nan"))


@dataclass(frozen=True, kw_only=True)
class CovarianceWindow(Selector):
    """A share of the steps, picked at random among the active ones whose covariance lies in the window; one at least.

    ``quantile`` sets the window's lower end for each minibatch in the place of ``low``.
    """

    share: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    quantile: float | None = None

    def __call__(self, logp: Tensor, batch: Rollouts, active: Tensor, rng: torch.Generator) -> Tensor:
        found = covariance(logp, batch.advantage, batch.mask)
        low = self.low if self.quantile is None else float(found[batch.mask].quantile(self.quantile))
        high = self.high if self.quantile is None else torch.inf
        candidates = (active & (found > low) & (found < high)).flatten().nonzero().squeeze(1)
        count = max(1, int(self.share * int(batch.mask.sum())))
        order = torch.randperm(len(candidates), generator=rng).to(candidates.device)
        picked = torch.zeros(batch.mask.numel(), dtype=torch.bool, device=batch.mask.device)
        picked[candidates[order[:count]]] = True
        return picked.view(batch.mask.shape)


@dataclass(frozen=True, kw_only=True)
class LargestCovariance(Selector):
    """The share of the steps with the largest covariance, one at least."""

    share: float = 2e-3

    def __call__(self, logp: Tensor, batch: Rollouts, active: Tensor, rng: torch.Generator) -> Tensor:
        found = covariance(logp, batch.advantage, batch.mask).masked_fill(~batch.mask, -torch.inf)
        count = max(1, int(self.share * int(batch.mask.sum())))
        picked = torch.zeros(batch.mask.numel(), dtype=torch.bool, device=batch.mask.device)
        picked[found.flatten().topk(count).indices] = True
        return picked.view(batch.mask.shape)


@dataclass(frozen=True, kw_only=True)
class PullToBehaviour(Regularizer):
    """coefficient · |log π - log π_old| at the selected steps."""

    name: ClassVar[str] = "pull"

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Tensor:
        assert outputs.logp is not None
        return self.coefficient * log_ratio(outputs.logp, batch).abs() * batch.selected


@dataclass(frozen=True, kw_only=True)
class Undecided(Credit):
    """Weight 0 for groups whose rewards are all alike: they neither count nor divide (all of them count where none differs)."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "group")
    gives: ClassVar[tuple[str, ...]] = ("weight",)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        differ = group_deviation(batch.scores["reward"], batch.group) > 0
        kept = differ if bool(differ.any()) else torch.ones_like(differ)
        return batch.replace(weight=kept[:, None].float().expand(batch.mask.shape))


def on_policy(objective: PolicyGradient) -> OnPolicy:
    """GRPO on undecided groups, eight updates on each batch of samples."""
    return replace(
        grpo.method(),
        collector=Groups(prompts=256, samples=8),
        credit=(Undecided(), GroupNormalized()),
        objective=objective,
        minibatches=8,
    )


def clip_cov() -> OnPolicy:
    stabilization = WithoutSelected(inner=RatioClip(low=1.0, high=1.0))
    return on_policy(
        SelectedPolicyGradient(stabilization=stabilization, aggregation=TokenMean(), selector=CovarianceWindow())
    )


method = clip_cov


def kl_cov() -> OnPolicy:
    return on_policy(
        SelectedPolicyGradient(
            aggregation=TokenMean(), selector=LargestCovariance(), regularizers=(PullToBehaviour(coefficient=1.0),)
        )
    )


def clip_higher() -> OnPolicy:
    return on_policy(PolicyGradient(stabilization=RatioClip(low=0.2, high=0.28), aggregation=TokenMean()))
