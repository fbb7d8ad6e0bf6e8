"""A stage that trains the critic alone, under a policy that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from policyopt.learners.on_policy import OnPolicy, OnPolicyLearner
from policyopt.objectives.policy_gradient import Objective
from policyopt.types import Budget


@dataclass(frozen=True, kw_only=True)
class CriticTraining(OnPolicy):
    """Collects and gives credit as ``OnPolicy`` does, and updates the critic on it. Raises ValueError without a critic."""

    objective: Objective = Objective()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic is None:
            raise ValueError("there is no critic to train: set critic=Critic()")

    def learner(
        self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None
    ) -> CriticTrainingLearner:
        return CriticTrainingLearner(self, problem, policy, seed, budget)


class CriticTrainingLearner(OnPolicyLearner):
    """``critic`` is what later stages start theirs from."""

    def _improve(self, batches: dict[str, Any]) -> dict[str, Tensor | float]:
        return {}
