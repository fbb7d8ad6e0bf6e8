"""The unified policy-gradient objective (Lv et al., arXiv 2509.04419, Table 1).

Per step, the gradient is  -stabilization · advantage · (π / denominator) · ∇ log π, summed with shares that an aggregation
sets. SFT, REINFORCE, RLOO, GRPO, Dr. GRPO, PPO, DAPO, CISPO, GSPO, SRFT and LUFFY are compositions of these parts: their
gradients equal the textbook's, and the logged value is the textbook's value.

A method that needs another weight writes another ``Denominator`` or ``Stabilization``; advantages and weights are columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from policyopt.parallel import all_sum
from policyopt.types import Loss, Outputs, Part, Rollouts

RATIO_LIMIT = 20.0  # |log ratio| beyond this is a sign of trouble, and exp of it of overflow


def log_ratio(logp: Tensor, batch: Rollouts) -> Tensor:
    """log π - log π_old [N, T], clamped to ±20; π_old is ``old_logp``, or the behaviour's where that is absent."""
    old = batch.old_logp if batch.old_logp is not None else batch.behaviour_logp
    assert old is not None
    return (logp - old).clamp(-RATIO_LIMIT, RATIO_LIMIT)


def k1(difference: Tensor) -> Tensor:
    """-d, with d = log reference - log π."""
    return -difference


def k2(difference: Tensor) -> Tensor:
    """d² / 2."""
    return difference.square() / 2


def k3(difference: Tensor) -> Tensor:
    """exp(d) - 1 - d, never negative; computed with expm1, which is exact near 0."""
    return difference.expm1() - difference


def divergences(logp: Tensor, batch: Rollouts, count: Tensor) -> dict[str, Tensor]:
    """How far the policy has moved from the one that sampled: KL(π_old ‖ π) by three estimators, Σ count · k.

    logp [N, T] detached; count [N, T] each step's share of a mean over active steps. Nothing where no old one is known.
    """
    if batch.old_logp is None and batch.behaviour_logp is None:
        return {}
    difference = log_ratio(logp, batch)  # the samples are π_old's, so that π has the reference's place
    return {f"policy/kl_{k.__name__}": (count * k(difference)).sum() for k in (k1, k2, k3)}


# -- denominators: what the likelihood gradient is divided by


@dataclass(frozen=True, kw_only=True)
class Denominator(Part):
    """``surrogate`` is the function of π that the textbook multiplies with the advantage; its derivative by log π is the
    weight π / denominator of the estimator."""

    def surrogate(self, logp: Tensor, batch: Rollouts) -> tuple[Tensor, Tensor]:
        """logp [N, T] → (surrogate, weight), both detached [N, T]."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Current(Denominator):
    """Denominator π: weight 1, surrogate log π. REINFORCE, and SFT with advantage 1."""

    def surrogate(self, logp: Tensor, batch: Rollouts) -> tuple[Tensor, Tensor]:
        return logp.detach(), torch.ones_like(logp)


@dataclass(frozen=True, kw_only=True)
class Behaviour(Denominator):
    """Denominator π_old: surrogate and weight are the importance ratio. PPO, GRPO, CISPO."""

    needs: ClassVar[tuple[str, ...]] = ("behaviour_logp",)

    def surrogate(self, logp: Tensor, batch: Rollouts) -> tuple[Tensor, Tensor]:
        ratio = log_ratio(logp.detach(), batch).exp()
        return ratio, ratio


# -- stabilizations: which steps carry gradient


@dataclass(frozen=True, kw_only=True)
class Stabilization(Part):
    """Default: every step counts in full."""

    def __call__(self, surrogate: Tensor, advantage: Tensor, logp: Tensor, batch: Rollouts) -> tuple[Tensor, Tensor]:
        """→ (factor on the gradient, the textbook's loss value), both detached [N, T]."""
        return torch.ones_like(surrogate), -advantage * surrogate


@dataclass(frozen=True, kw_only=True)
class RatioClip(Stabilization):
    """PPO's clip (arXiv 1707.06347, Eq. 7), asymmetric as in DAPO (arXiv 2503.14476), with the optional dual clip of
    arXiv 1912.09729: where the advantage is negative the loss is at most -dual · advantage."""

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __call__(self, surrogate: Tensor, advantage: Tensor, logp: Tensor, batch: Rollouts) -> tuple[Tensor, Tensor]:
        cost = -advantage
        plain, clipped = cost * surrogate, cost * surrogate.clamp(1 - self.low, 1 + self.high)
        value = torch.maximum(plain, clipped)
        factor = (plain >= clipped).to(surrogate.dtype)
        if self.dual is not None:
            bound = -self.dual * advantage
            capped = (advantage < 0) & (value > bound)
            value, factor = torch.where(capped, bound, value), factor.masked_fill(capped, 0.0)
        return factor, value


# -- aggregations: how steps add up


@dataclass(frozen=True, kw_only=True)
class Aggregation(Part):
    """The share of each step in the loss, from masks and weights of the WHOLE minibatch, so that micro-batches add up."""

    def __call__(self, batch: Rollouts) -> Tensor:
        """→ [N, T], zero where the policy did not choose."""
        raise NotImplementedError


def counted(batch: Rollouts) -> Tensor:
    """[N, T] float: 1 where the policy chose, times ``weight`` where there is one."""
    return batch.mask.float() if batch.weight is None else batch.mask * batch.weight


def row_count(batch: Rollouts) -> Tensor:
    """Rows of the minibatch over all processes."""
    return all_sum(torch.tensor(float(len(batch)), device=batch.mask.device))


@dataclass(frozen=True, kw_only=True)
class TokenMean(Aggregation):
    """Mean over all active steps of the minibatch (DAPO, PPO)."""

    def __call__(self, batch: Rollouts) -> Tensor:
        count = counted(batch)
        return count / all_sum(count.sum()).clamp(min=1e-8)


@dataclass(frozen=True, kw_only=True)
class SequenceMean(Aggregation):
    """Mean over rows of the mean over a row's steps (GRPO as published, arXiv 2402.03300, Eq. 3)."""

    def __call__(self, batch: Rollouts) -> Tensor:
        count = counted(batch)
        return count / count.sum(1, keepdim=True).clamp(min=1e-8) / row_count(batch)


# -- regularizers: what is added


@dataclass(frozen=True, kw_only=True)
class Regularizer(Part):
    """A term per step, added with the shares of the objective. ``name`` is its key in the log: ``loss/<name>``."""

    name: ClassVar[str] = "regularizer"
    want: ClassVar[tuple[str, ...]] = ()
    coefficient: float

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Tensor:
        """→ [N, T] with gradient."""
        raise NotImplementedError


# -- the objective


@dataclass(frozen=True, kw_only=True)
class Objective(Part):
    """outputs + batch → loss. ``prepare`` runs once on the whole minibatch, the call on each micro-batch of it.

    ``whole_groups``: rows of a group must come together, because their terms can't be told apart. Between the two,
    ``measure`` sees the policy's present outputs for the whole minibatch, without gradient, where ``measures`` asks for it.
    """

    whole_groups: ClassVar[bool] = False
    measures: ClassVar[bool] = False

    def measure(self, logp: Tensor, batch: Rollouts, rng: torch.Generator) -> Rollouts:
        """logp [N, T] → the batch with columns that need numbers of the whole minibatch."""
        raise NotImplementedError

    def want(self) -> tuple[str, ...]:
        """What the policy has to evaluate."""
        return ("logp",)

    def prepare(self, batch: Rollouts) -> Rollouts:
        return batch

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Loss:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Objective):
    """-Σ share · stabilization · advantage · (π / denominator) · ∇ log π, plus regularizers with the same shares."""

    needs: ClassVar[tuple[str, ...]] = ("advantage",)
    denominator: Denominator = Behaviour()
    stabilization: Stabilization = Stabilization()
    aggregation: Aggregation = TokenMean()
    regularizers: tuple[Regularizer, ...] = field(default_factory=tuple)

    def want(self) -> tuple[str, ...]:
        return ("logp", *sorted({name for r in self.regularizers for name in r.want}))

    def prepare(self, batch: Rollouts) -> Rollouts:
        counts = TokenMean()(batch)
        shares = counts if self.aggregation == TokenMean() else self.aggregation(batch)
        centred = counts * (batch.advantage - all_sum((counts * batch.advantage).sum()))
        return batch.replace(share=torch.stack([shares, counts, centred], -1))

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Loss:
        logp, advantage = outputs.logp, batch.advantage
        assert logp is not None
        share, count, centred = batch.share.unbind(-1)
        surrogate, weight = self.denominator.surrogate(logp, batch)
        factor, value = self.stabilization(surrogate, advantage, logp, batch)
        gradient = -factor * advantage * weight
        policy = (share * (value + gradient * (logp - logp.detach()))).sum()
        metrics = {
            "loss/policy": policy.detach(),
            "policy/clip_fraction": (count * (factor == 0)).sum(),
            "policy/covariance": (centred * logp.detach()).sum(),
            **divergences(logp.detach(), batch, count),
        }
        total = policy
        for regularizer in self.regularizers:
            term = (share * regularizer(outputs, batch)).sum()
            total = total + term
            metrics[f"loss/{regularizer.name}"] = term.detach()
        return Loss(total, metrics)
