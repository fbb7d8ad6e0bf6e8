"""RTO: PPO on a dense token reward that a DPO policy gives (arXiv 2404.18922).

In the token-level decision process the log-ratio of the DPO policy to its reference is the soft advantage of the true reward,
so it may be added to each token's reward without changing what is optimal:

    r_t = clip( β₁ (log π_dpo - log reference), ±c ) - β₂ (log π - log reference),   at the last token + r(x, y) too

    method       as above, β₁ = 0.05, c = 0.05 (after scaling, so log-ratios count within ±1), β₂ = 0.01
    dense_only   without the reward model's r

Three stages before or beside PPO: DPO and the reward model, both from the given policy; PPO then starts from it again. r is
standardized over the given responses. β₁ = 0 is PPO (in the authors' code it means an unscaled log-ratio). Policy and value loss
are a mean over responses of the mean over tokens in the authors' code; here the policy's is, the critic's is a token mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from policyopt.credit.groups import Credit
from policyopt.credit.returns import GeneralizedAdvantage, ReferencePenalty, RewardAtEnd
from policyopt.learners.annotators import Guide, Reference
from policyopt.learners.critic import Critic
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.reward_model import BradleyTerry, Rewarded, reward_model
from policyopt.learners.stages import Stage, Stages
from policyopt.methods import dpo
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip, SequenceMean
from policyopt.rollouts.language import Groups
from policyopt.rollouts.preferences import ranked_responses
from policyopt.types import Budget, Learner, Rollouts

FAMILY = "preferences"
VARIANTS = ("dense_only",)

STANDARDIZED_ON = 512  # prompts


def token_reward(guide_logp: Tensor, ref_logp: Tensor, scale: float, clip: float) -> Tensor:
    """clip(β₁ (log π_dpo - log reference), ±c), any shape; ``clip`` 0 leaves it as it is."""
    dense = scale * (guide_logp - ref_logp)
    return dense.clamp(-clip, clip) if clip else dense


@dataclass(frozen=True, kw_only=True)
class TokenReward(Credit):
    """rewards + the guide's token reward."""

    needs: ClassVar[tuple[str, ...]] = ("rewards", "guide_logp", "ref_logp")
    gives: ClassVar[tuple[str, ...]] = ("rewards",)
    scale: float = 0.05
    clip: float = 0.05

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        dense = token_reward(batch.guide_logp, batch.ref_logp, self.scale, self.clip) * batch.mask
        return batch.replace(rewards=batch.rewards + dense)


@dataclass(frozen=True, kw_only=True)
class NoOutcome(Credit):
    """The response's own reward counts nothing."""

    needs: ClassVar[tuple[str, ...]] = ("rewards",)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        return batch.replace(rewards=torch.zeros_like(batch.rewards))


@dataclass(frozen=True, kw_only=True)
class Reinforced(Rewarded):
    """PPO from the given policy, with the reward model, standardized, and the DPO policy as guide."""

    restart: bool = True
    guide: str = "dpo"

    def build(
        self, artifacts: Mapping[str, Learner], problem: Any, policy: Any, seed: int, budget: Budget | None
    ) -> Learner:
        model = reward_model(artifacts, self.by)
        ids = range(min(STANDARDIZED_ON, problem.size("train")))
        model.standardize(ranked_responses(model.body, problem, ids)[0], model.default_micro_batch())
        guide = Guide(model=artifacts[self.guide].policy)
        method = replace(self.method, annotators=(*self.method.annotators, guide))
        return Rewarded.build(replace(self, method=method), artifacts, problem, policy, seed, budget)


def reinforcement(dense: tuple[Credit, ...], penalty: float = 0.01) -> OnPolicy:
    """PPO on the reward at the end, the ``dense`` rewards of tokens, and the divergence from the reference inside the reward."""
    return OnPolicy(
        collector=Groups(prompts=128, samples=1),
        annotators=(Reference(),),
        critic=Critic(clip=0.2),
        credit=(RewardAtEnd(), *dense, ReferencePenalty(coefficient=penalty), GeneralizedAdvantage(lam=0.95)),
        objective=PolicyGradient(stabilization=RatioClip(low=0.2, high=0.2), aggregation=SequenceMean()),
        minibatches=8,
    )


PREFERENCES = Budget(updates=500)


def reinforced(training: OnPolicy, preferences: Budget = PREFERENCES) -> Stages:
    """DPO and a reward model for ``preferences`` each, then ``training``."""
    return Stages(
        stages=(
            Stage(name="dpo", method=dpo.method(), until=preferences),
            Stage(name="reward", method=BradleyTerry(), until=preferences, restart=True),
            Reinforced(name="ppo", method=training),
        )
    )


def method() -> Stages:
    return reinforced(reinforcement((TokenReward(),)))


def dense_only() -> Stages:
    return reinforced(reinforcement((NoOutcome(), TokenReward())))
