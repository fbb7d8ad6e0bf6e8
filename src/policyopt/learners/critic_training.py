"""Training the critic alone, under a policy that stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from policyopt.learners.on_policy import OnPolicy, OnPolicyLearner
from policyopt.models.language_critic import LanguageCritic
from policyopt.objectives.policy_gradient import Objective, TokenMean
from policyopt.types import Budget, Loss, Outputs, Rollouts


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


@dataclass(frozen=True, kw_only=True)
class SoftTargets(Objective):
    """-[v log σ(V) + (1 - v) log(1 - σ(V))], a mean over states; v in [0, 1] are the ``returns``."""

    needs: ClassVar[tuple[str, ...]] = ("returns",)

    def want(self) -> tuple[str, ...]:
        return ("value",)

    def prepare(self, batch: Rollouts) -> Rollouts:
        return batch.replace(share=TokenMean()(batch)[..., None])

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Loss:
        assert outputs.value is not None
        each = binary_cross_entropy_with_logits(outputs.value, batch.returns, reduction="none")
        total = (batch.share[..., 0] * each).sum()
        return Loss(total, {"loss/value": total.detach()})


class CriticFit:
    """Trains a language critic, ``model``, by the objective of ``method`` on its values; ``policy`` stays as it is."""

    def __init__(self, method: OnPolicy, problem: Any, policy: Any, seed: int, budget: Budget | None) -> None:
        self.policy, self.model = policy, LanguageCritic(policy, seed)
        self.fit = OnPolicyLearner(method, problem, self.model, seed, budget)
        self.clock = self.fit.clock

    def step(self) -> Mapping[str, Tensor | float]:
        return self.fit.step()

    def state_dict(self) -> dict[str, Any]:
        return self.fit.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fit.load_state_dict(state)
