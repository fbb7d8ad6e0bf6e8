"""Further parts of the unified policy-gradient estimator: the weights of GSPO, SRFT, LUFFY and CISPO, and two aggregations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from policyopt.objectives.policy_gradient import (
    Aggregation,
    Denominator,
    Stabilization,
    counted,
    log_ratio,
    row_count,
)
from policyopt.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class SequenceRatio(Denominator):
    """GSPO (arXiv 2507.18071, Eq. 7): the geometric mean of a row's importance ratios, the same for all its steps.

    Its textbook gradient spreads s/|y| over the steps of a row; with ``SequenceMean`` the share 1/|y| is the aggregation's.
    """

    needs: ClassVar[tuple[str, ...]] = ("behaviour_logp",)

    def surrogate(self, logp: Tensor, batch: Rollouts) -> tuple[Tensor, Tensor]:
        difference = log_ratio(logp.detach(), batch) * batch.mask
        mean = difference.sum(1, keepdim=True) / batch.mask.sum(1, keepdim=True).clamp(min=1)
        ratio = mean.exp().expand_as(logp)
        return ratio, ratio


@dataclass(frozen=True, kw_only=True)
class One(Denominator):
    """Denominator 1: surrogate and weight π itself. The offline part of SRFT (arXiv 2506.19767)."""

    def surrogate(self, logp: Tensor, batch: Rollouts) -> tuple[Tensor, Tensor]:
        probability = logp.detach().exp()
        return probability, probability


@dataclass(frozen=True, kw_only=True)
class Shaped(Denominator):
    """Surrogate f(π) = π / (π + γ), weight π f'(π) = γ π / (π + γ)²: the offline part of LUFFY (arXiv 2504.14945)."""

    gamma: float = 0.1

    def surrogate(self, logp: Tensor, batch: Rollouts) -> tuple[Tensor, Tensor]:
        probability = logp.detach().exp()
        shifted = probability + self.gamma
        return probability / shifted, probability * self.gamma / shifted**2


@dataclass(frozen=True, kw_only=True)
class WeightClip(Stabilization):
    """CISPO (arXiv 2506.13585, Eq. 4): the ratio is clipped as a weight, no step loses its gradient.
    The textbook's value is -clip(ratio) · advantage · log π."""

    low: float = 1.0
    high: float = 0.28

    def __call__(self, surrogate: Tensor, advantage: Tensor, logp: Tensor, batch: Rollouts) -> tuple[Tensor, Tensor]:
        weight = surrogate.clamp(1 - self.low, 1 + self.high)
        return weight / surrogate, -weight * advantage * logp.detach()


@dataclass(frozen=True, kw_only=True)
class SequenceSum(Aggregation):
    """Mean over rows of the sum over a row's steps: the likelihood of a whole response (REINFORCE, RLOO)."""

    def __call__(self, batch: Rollouts) -> Tensor:
        return counted(batch) / row_count(batch)


@dataclass(frozen=True, kw_only=True)
class FixedLength(Aggregation):
    """Mean over rows of the sum over steps divided by one constant (Dr. GRPO, arXiv 2503.20783)."""

    length: int = 1024

    def __call__(self, batch: Rollouts) -> Tensor:
        return counted(batch) / (row_count(batch) * self.length)
