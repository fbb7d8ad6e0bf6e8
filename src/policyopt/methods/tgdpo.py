"""TGDPO: DPO whose tokens are weighted by a token reward, that of a DPO policy trained before (arXiv 2506.14574).

    r̂_t = β (log π̂ - log reference),   f_t = 1 + α r̂_t on chosen tokens, 1 - α r̂_t on rejected ones
    loss = mean of -log σ( Σ_t β f_t (log π - log reference) over the chosen - the same over the rejected )

    method         π̂ trained by DPO
    simpo_guide    π̂ trained by SimPO, -log σ( β (mean_t log π(chosen) - mean_t log π(rejected)) - γ ) (arXiv 2405.14734)

Two stages: the first gives π̂; then training starts again from the policy that was given. The weights are constants. They stay at
``floor`` or more (a token's push must not change sign; the authors' code does not clamp, as
floor=-inf doesn't). α = 0.5 and β = 0.1 are the repository's example; the paper also shows α = 1 and 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from policyopt.credit.groups import Credit
from policyopt.learners.annotators import Guide
from policyopt.learners.stages import Stage, Stages
from policyopt.methods import dpo
from policyopt.objectives.policy_gradient import counted
from policyopt.objectives.preference import PairLoss, Preference, SequenceScore, Sigmoid, ranked_rows, sigmoid_loss
from policyopt.types import Budget, Learner, Outputs, Rollouts

FAMILY = "preferences"
VARIANTS = ("simpo_guide",)


def token_weights(token_reward: Tensor, chosen: Tensor, alpha: float, floor: float) -> Tensor:
    """max(1 ± α r̂_t, floor), + where chosen: token_reward [N, T], chosen [N] → [N, T]."""
    sign = torch.where(chosen, 1.0, -1.0)[:, None]
    return (1.0 + alpha * sign * token_reward).clamp(min=floor)


@dataclass(frozen=True, kw_only=True)
class TokenGuidance(Credit):
    """``weight``: what each token counts, from the guide's log-ratio to the reference."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "group", "ref_logp", "guide_logp")
    gives: ClassVar[tuple[str, ...]] = ("weight",)
    alpha: float = 0.5
    beta: float = 0.1
    floor: float = 0.05

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        chosen = torch.zeros(len(batch), dtype=torch.bool, device=batch.mask.device)
        chosen[ranked_rows(batch)[:, 0]] = True
        reward = self.beta * (batch.guide_logp - batch.ref_logp)
        return batch.replace(weight=token_weights(reward, chosen, self.alpha, self.floor))


@dataclass(frozen=True, kw_only=True)
class Guided(Stage):
    """Trains with the policy of the stage ``by`` as guide, from the policy that was given in the beginning."""

    restart: bool = True
    by: str = "guide"

    def build(
        self, artifacts: Mapping[str, Learner], problem: Any, policy: Any, seed: int, budget: Budget | None
    ) -> Learner:
        guide = Guide(model=artifacts[self.by].policy)
        method = replace(self.method, annotators=(*self.method.annotators, guide))
        return Stage.build(replace(self, method=method), artifacts, problem, policy, seed, budget)


@dataclass(frozen=True, kw_only=True)
class AverageLikelihood(SequenceScore):
    """The mean over the response's tokens of log π: no reference."""

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Tensor:
        assert outputs.logp is not None
        return (outputs.logp * counted(batch)).sum(1) / counted(batch).sum(1)


@dataclass(frozen=True, kw_only=True)
class SigmoidBeyond(PairLoss):
    """-log σ(β h - γ): pairs count until they are γ apart."""

    gamma: float = 1.0

    def pair(self, difference: Tensor) -> Tensor:
        return sigmoid_loss(self.beta * difference - self.gamma)


SIMPO = Preference(score=AverageLikelihood(), loss=SigmoidBeyond(beta=2.0, gamma=1.0))


def guided(base: Any, guidance: TokenGuidance, first: Budget, guide: Preference | None = None) -> Stages:
    """``guide`` (DPO where None) for ``first``, then DPO with token weights; β is that of the token reward in both."""
    objective = Preference(loss=Sigmoid(beta=guidance.beta))
    weighted = replace(base, credit=(guidance,), objective=objective)
    stages = (
        Stage(name="guide", method=replace(base, objective=guide or objective), until=first),
        Guided(name="guided", method=weighted),
    )
    return Stages(stages=stages)


def method() -> Stages:
    return guided(dpo.method(), TokenGuidance(), Budget(updates=500))


def simpo_guide() -> Stages:
    return guided(dpo.method(), TokenGuidance(), Budget(updates=500), guide=SIMPO)
