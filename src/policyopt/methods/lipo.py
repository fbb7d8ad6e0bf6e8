"""LiPO: preference optimization as learning to rank, on lists of K labelled responses (arXiv 2402.01878).

With scores s_k = β Σ_t (log π - log reference) and labels ψ_k in [0, 1], over ordered pairs (ψ_i > ψ_j)

    lambda loss   Δ_ij log(1 + exp(s_j - s_i)),   Δ_ij = K |2^ψ_i - 2^ψ_j| |1/log₂(1 + rank_i) - 1/log₂(1 + rank_j)|

ranks being those of the current scores, best first; Δ carries no gradient. As in the ranking library that the authors used,
discounts are to base 2, Δ has the factor K, and pairwise losses are means over the valid pairs of the batch.

    method            LiPO-λ
    constant_weight   Δ = 1 (DPO on all pairs)         constant_gain, constant_discount    one of Δ's factors is 1
    hinge             max(0, 1 - (s_i - s_j))          list_mle       the likelihood of the ranking (Plackett-Luce)
    softmax           -Σ ψ_j/Σψ log softmax(s)_j       point_mse, point_sigmoid    each response by itself
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from policyopt.learners.on_policy import OnPolicy
from policyopt.methods import dpo
from policyopt.objectives.preference import (
    Hinge,
    ListLoss,
    PairLoss,
    PlackettLuce,
    Preference,
    Sigmoid,
    ordered_pairs,
)
from policyopt.rollouts.preferences import Rankings

FAMILY = "preferences"
VARIANTS = (
    "constant_weight",
    "constant_gain",
    "constant_discount",
    "hinge",
    "list_mle",
    "softmax",
    "point_mse",
    "point_sigmoid",
)


def gain_difference(labels: Tensor) -> Tensor:
    """|2^ψ_i - 2^ψ_j|: labels [L, K] → [L, K, K]."""
    gain = labels.exp2()
    return (gain[:, :, None] - gain[:, None, :]).abs()


def discount_difference(scores: Tensor) -> Tensor:
    """|1/log₂(1 + rank_i) - 1/log₂(1 + rank_j)|: scores [L, K] → [L, K, K], the highest score having rank 1."""
    rank = scores.argsort(descending=True, stable=True).argsort() + 1
    discount = 1.0 / (1.0 + rank).log2()
    return (discount[:, :, None] - discount[:, None, :]).abs()


def softmax_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """-Σ_j (ψ_j / Σ ψ) log softmax(s)_j: [L, K] → [L]; zero where all labels are."""
    share = labels / labels.sum(-1, keepdim=True).clamp(min=1e-8)
    return -(share * scores.log_softmax(-1)).sum(-1)


def point_sigmoid_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """-Σ_k [ψ_k log σ(s_k) + (1 - ψ_k) log σ(-s_k)]: [L, K] → [L]."""
    return -(labels * logsigmoid(scores) + (1.0 - labels) * logsigmoid(-scores)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Lambda(PairLoss):
    """The lambda loss; ``gain`` and ``discount`` say which factors of Δ there are."""

    beta: float = 0.05
    gain: bool = True
    discount: bool = True

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        scaled = self.beta * scores
        weight = torch.full_like(labels[:, :, None] - labels[:, None, :], float(labels.shape[1]))
        weight = weight * gain_difference(labels) if self.gain else weight
        weight = weight * discount_difference(scaled.detach()) if self.discount else weight
        loss = -weight * logsigmoid(scaled[:, :, None] - scaled[:, None, :])
        return torch.where(ordered_pairs(labels), loss, 0.0).flatten(1).sum(1)


@dataclass(frozen=True, kw_only=True)
class Softmax(ListLoss):
    """Cross-entropy to the normalized labels."""

    beta: float = 0.05

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        return softmax_loss(self.beta * scores, labels)


@dataclass(frozen=True, kw_only=True)
class Pointwise(ListLoss):
    """A mean over responses, each by itself."""

    beta: float = 0.05

    def count(self, labels: Tensor) -> Tensor:
        return torch.full_like(labels[:, 0], float(labels.shape[1]))


@dataclass(frozen=True, kw_only=True)
class PointSquare(Pointwise):
    """Σ_k (ψ_k - s_k)²."""

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        return (labels - self.beta * scores).square().sum(-1)


@dataclass(frozen=True, kw_only=True)
class PointSigmoid(Pointwise):
    """Σ_k of the binary cross-entropy of σ(s_k) to ψ_k."""

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        return point_sigmoid_loss(self.beta * scores, labels)


def ranking(loss: ListLoss) -> OnPolicy:
    """DPO's training with this loss on lists."""
    return replace(dpo.method(), collector=Rankings(prompts=32), objective=Preference(loss=loss))


def method() -> OnPolicy:
    return ranking(Lambda())


def constant_weight() -> OnPolicy:
    return ranking(Sigmoid(beta=0.05))


def constant_gain() -> OnPolicy:
    return ranking(Lambda(gain=False))


def constant_discount() -> OnPolicy:
    return ranking(Lambda(discount=False))


def hinge() -> OnPolicy:
    return ranking(Hinge(beta=0.05))


def list_mle() -> OnPolicy:
    return ranking(PlackettLuce(beta=0.05))


def softmax() -> OnPolicy:
    return ranking(Softmax())


def point_mse() -> OnPolicy:
    return ranking(PointSquare())


def point_sigmoid() -> OnPolicy:
    return ranking(PointSigmoid())
