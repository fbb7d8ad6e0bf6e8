"""Policy gradients in which some steps are singled out by numbers of the whole minibatch: the largest covariances, say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from policyopt.objectives.policy_gradient import PolicyGradient, Stabilization
from policyopt.types import Loss, Outputs, Part, Rollouts


@dataclass(frozen=True, kw_only=True)
class Selector(Part):
    """Picks steps from the current log-probabilities of the WHOLE minibatch, so that micro-batches agree with it."""

    def __call__(self, logp: Tensor, batch: Rollouts, active: Tensor, rng: torch.Generator) -> Tensor:
        """logp [N, T], detached; ``active`` [N, T]: where the stabilization leaves a gradient → True where picked."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class WithoutSelected(Stabilization):
    """``inner``, but steps that a selector picked lose gradient and value; they still count in the divisor."""

    inner: Stabilization = Stabilization()

    def __call__(self, surrogate: Tensor, advantage: Tensor, logp: Tensor, batch: Rollouts) -> tuple[Tensor, Tensor]:
        factor, value = self.inner(surrogate, advantage, logp, batch)
        return (factor, value) if batch.selected is None else (factor * ~batch.selected, value * ~batch.selected)


@dataclass(frozen=True, kw_only=True)
class SelectedPolicyGradient(PolicyGradient):
    """A policy gradient whose ``selector`` marks steps (``selected``) for its stabilization and its regularizers."""

    measures: ClassVar[bool] = True
    selector: Selector

    def measure(self, logp: Tensor, batch: Rollouts, rng: torch.Generator) -> Rollouts:
        surrogate, _ = self.denominator.surrogate(logp, batch)
        factor, _ = self.stabilization(surrogate, batch.advantage, logp, batch)
        return batch.replace(selected=self.selector(logp, batch, (factor > 0) & batch.mask, rng) & batch.mask)

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Loss:
        loss = super().__call__(outputs, batch)
        return Loss(loss.value, {**loss.metrics, "policy/selected": (batch.share[..., 1] * batch.selected).sum()})
