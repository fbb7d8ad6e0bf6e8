"""Regularizers that are added to an objective, per step: divergences to a reference, entropy.

Three estimators of KL(π‖reference) from samples of π (Schulman's names): with d = log reference - log π,

    k1 = -d                 unbiased, high variance; as a loss its expected gradient is ZERO
    k2 = d²/2               biased; as a loss its expected gradient is that of the divergence
    k3 = exp(d) - 1 - d     unbiased, low variance; as a loss its gradient is that of the REVERSE divergence KL(reference‖π)

So: to penalize the divergence use ``k1`` in the reward (``credit.returns.ReferencePenalty``) or ``k2`` as a loss; ``k3`` as a
loss is what GRPO published. The names say which one is in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from policyopt.objectives.policy_gradient import Regularizer, k2, k3
from policyopt.types import Outputs, Rollouts


@dataclass(frozen=True, kw_only=True)
class _ToReference(Regularizer):
    needs: ClassVar[tuple[str, ...]] = ("ref_logp",)
    limit: ClassVar[float] = 10.0  # |d| beyond this would overflow exp(d)

    def difference(self, outputs: Outputs, batch: Rollouts) -> Tensor:
        assert outputs.logp is not None
        return (batch.ref_logp - outputs.logp).clamp(-self.limit, self.limit)


@dataclass(frozen=True, kw_only=True)
class ReferenceK2(_ToReference):
    """coefficient · k2 as a loss: the gradient of KL(π‖reference) on samples of π."""

    name: ClassVar[str] = "reference_k2"

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Tensor:
        return self.coefficient * k2(self.difference(outputs, batch))


@dataclass(frozen=True, kw_only=True)
class ReferenceK3(_ToReference):
    """coefficient · k3 as a loss, as GRPO published it (arXiv 2402.03300, Eq. 4)."""

    name: ClassVar[str] = "reference_k3"

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Tensor:
        return self.coefficient * k3(self.difference(outputs, batch))


@dataclass(frozen=True, kw_only=True)
class EntropyBonus(Regularizer):
    """-coefficient · entropy of the policy at each step."""

    name: ClassVar[str] = "entropy_bonus"
    want: ClassVar[tuple[str, ...]] = ("entropy",)

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Tensor:
        assert outputs.entropy is not None
        return -self.coefficient * outputs.entropy
