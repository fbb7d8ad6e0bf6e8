"""CoPG: contrastive policy gradient, for any scores of responses of any origin (arXiv 2406.19185).

Each response's baseline is the regularized reward of another, independent response to the prompt. With this baseline, and no
other, the policy gradient needs no importance weights off-policy. With g = Σ_t (log π - log reference), d = g(y) - g(y'),

    maximise (R(y) - R(y')) d - (β/2) d²   =   minimise (1/(2β)) (R(y) - R(y') - β d)² up to a constant,

whose gradient is (R_β(y) - R_β(y')) (∇ log π(y) - ∇ log π(y')), R_β = R - β g: the β/2 in the loss is right because the
weights are differentiated too. For K responses, the mean over pairs times K/2 (the form Σ_{i<j}/(K - 1)).

    method    the problem's ranked responses, scored by its reward      online    the policy's own samples: RLOO's gradient
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.methods import dpo
from policyopt.models.language import LanguagePolicy
from policyopt.objectives.preference import ListLoss, Preference
from policyopt.rollouts.language import Groups, check_scores
from policyopt.rollouts.preferences import Rankings
from policyopt.types import Clock, Collected

FAMILY = "preferences"
VARIANTS = ("online",)


def contrastive_loss(difference: Tensor, reward_difference: Tensor, beta: float) -> Tensor:
    """(β/2) d² - (R - R') d, elementwise."""
    return 0.5 * beta * difference.square() - reward_difference * difference


@dataclass(frozen=True, kw_only=True)
class Contrastive(ListLoss):
    """Σ over pairs i < j of a list of K, divided by K - 1; labels are rewards."""

    beta: float = 0.06

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        size = scores.shape[1]
        i, j = torch.triu_indices(size, size, 1, device=scores.device)
        loss = contrastive_loss(scores[:, i] - scores[:, j], labels[:, i] - labels[:, j], self.beta)
        return loss.sum(1) / (size - 1)


@dataclass(frozen=True, kw_only=True)
class Scored(Rankings):
    """The problem's ranked responses with its reward as their score, in the place of their label."""

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        collected = super().__call__(policy, problem, clock)
        batch = collected.batches["rollouts"]
        ids = batch.prompt_id.tolist()
        scores = problem.score(ids, policy.decode(batch.actions, batch.length))
        check_scores(scores, ids, problem.name)
        rewarded = TensorDict({name: value.to(policy.device) for name, value in scores.items()}, [len(batch)])
        metrics = {**collected.metrics, "reward/mean": scores["reward"].mean()}
        return Collected({"rollouts": batch.replace(scores=rewarded)}, metrics)


def method() -> OnPolicy:
    return replace(dpo.method(), collector=Scored(prompts=64), objective=Preference(loss=Contrastive()))


def online() -> OnPolicy:
    return replace(method(), collector=Groups(prompts=64, samples=2), annotators=(Reference(),))
