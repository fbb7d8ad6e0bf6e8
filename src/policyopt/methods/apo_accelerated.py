"""APO: iterative preference optimization with Nesterov's momentum on the policy (arXiv 2410.06293).

Repeating DPO with the last policy as reference is a proximal point method. After each proximal step π̂_t its log-policy is
extrapolated, and the result is sampled from and is the reference of the next step:

    π_{t+1} ∝ π̂_t (π̂_t / π̂_{t-1})^α

    method    DPO's loss          sppo    squared regression of the log-ratio on the win rate (general preferences)

One learner step is one iteration. Taken here to be an extrapolation of PARAMETERS, θ + α (θ̂_t - θ̂_{t-1}): exact for log-linear
policies, and the sequence-level normalizer of a language model can't be computed. Adam's moments start anew in each
iteration; nothing is extrapolated in the first one and after the last, so the policy that is left is the proximal iterate.
In the ideal dynamics momentum amounts to iterative DPO with β (1 - α): a larger step without a smaller β in the inner loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from policyopt.credit.groups import Credit
from policyopt.learners.on_policy import OnPolicy, OnPolicyLearner, default_learning_rate
from policyopt.learners.update import Adam
from policyopt.objectives.preference import ListLoss, Preference, Sigmoid
from policyopt.rollouts.preferences import LabelledPairs
from policyopt.types import Budget, Rollouts

FAMILY = "preferences"
VARIANTS = ("sppo",)


@dataclass(frozen=True, kw_only=True)
class BehaviourReference(Credit):
    """``ref_logp`` ← the policy that sampled: each iteration's reference is the policy that it starts from."""

    needs: ClassVar[tuple[str, ...]] = ("behaviour_logp",)
    gives: ClassVar[tuple[str, ...]] = ("ref_logp",)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        return batch.replace(ref_logp=batch.behaviour_logp)


@dataclass(frozen=True, kw_only=True)
class WinRate(ListLoss):
    """Σ_k (s_k - (P_k - ½)/β)²: SPPO's regression, P_k being a response's rate of wins, its label (arXiv 2405.00675)."""

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        return (scores - (labels - 0.5) / self.beta).square().sum(-1)


@torch.no_grad()
def extrapolated(last: list[Tensor], before: list[Tensor], alpha: float) -> list[Tensor]:
    """θ̂_t + α (θ̂_t - θ̂_{t-1}), tensor by tensor."""
    return [new + alpha * (new - old) for new, old in zip(last, before, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Accelerated(OnPolicy):
    """Iterative preference optimization with momentum ``alpha`` from one iteration's policy to the next."""

    alpha: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.alpha < 1.0:
            raise ValueError(f"the momentum alpha lies from 0 to below 1, got {self.alpha}")

    def learner(
        self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None
    ) -> AcceleratedLearner:
        return AcceleratedLearner(self, problem, policy, seed, budget)


class AcceleratedLearner(OnPolicyLearner):
    """``before`` holds the parameters of the proximal iterate before the last one."""

    method: Accelerated

    def __init__(self, method: Accelerated, problem: Any, policy: Any, seed: int, budget: Budget | None) -> None:
        super().__init__(method, problem, policy, seed, budget)
        self.before = self._copied()

    def _copied(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.policy.parameters()]

    def step(self) -> dict[str, Tensor | float]:
        """Extrapolate, then one iteration from there."""
        last = self._copied()
        with torch.no_grad():
            moved = extrapolated(last, self.before, self.method.alpha)
            for parameter, value in zip(self.policy.parameters(), moved, strict=True):
                parameter.copy_(value)
        self.before = last
        self.optimizer = self.method.optimizer.build(self.policy.parameters(), default_learning_rate(self.policy))
        return super().step()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.before = [tensor.clone() for tensor in state["before"]]


def method() -> Accelerated:
    return Accelerated(
        collector=LabelledPairs(prompts=256, samples=2),
        credit=(BehaviourReference(),),
        objective=Preference(loss=Sigmoid(beta=0.1)),
        optimizer=Adam(),
        epochs=4,
        minibatches=4,
    )


def sppo() -> Accelerated:
    return replace(method(), objective=Preference(loss=WinRate(beta=0.1)))
