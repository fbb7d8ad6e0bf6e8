"""PPO-max: the choices that keep PPO from collapsing under a learned reward (arXiv 2307.04964).

Three stages. A reward model with a language-model loss on the chosen responses; a critic that starts from it and is trained
under the initial policy; then PPO from that critic, with

    reward         clip((r - mean) / deviation, ±δ) over all rewards seen, at the last token; - η k1 to the initial policy at each
    value loss     the larger of plain and clipped
    policy loss    clipped ratio + imitation of demonstrations (against what alignment costs)

    vanilla             none of it: raw rewards, no penalty, no imitation, a critic from the policy
    reward_scaling      rewards over their running deviation, mean left in, no clip
    advantage_clip      whitened advantages within ±0.5 as well (conflicts with the rest, the paper finds)
    entropy_bonus       0.01 · entropy as well           policy_critic    the critic starts from the policy
    reference_ratio     the ratio is taken to the initial policy (its study of importance sampling)

δ = 0.8 and an imitation weight of 1 are ours: the paper leaves them open. Sampling is at temperature 1 (0.8, top-p 0.9 and a
repetition penalty in its code), policy and critic have an optimizer each. A truncated response earns its score as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from policyopt.credit.groups import Credit
from policyopt.credit.returns import GeneralizedAdvantage, ReferencePenalty, RewardAtEnd
from policyopt.credit.scaling import RunningReward
from policyopt.learners.annotators import Reference
from policyopt.learners.critic import Critic
from policyopt.learners.critic_training import CriticTraining, CriticTrainingLearner
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.reward_model import Rewarded, reward_model, with_language_loss
from policyopt.learners.stages import Stage, Stages
from policyopt.methods import ppo
from policyopt.objectives.divergence import EntropyBonus
from policyopt.objectives.imitation import Imitation
from policyopt.objectives.policy_gradient import PolicyGradient
from policyopt.rollouts.language import Groups
from policyopt.rollouts.together import Together
from policyopt.rollouts.written import Demonstrations
from policyopt.types import Budget, Learner, Rollouts

FAMILY = "language"
VARIANTS = ("vanilla", "reward_scaling", "advantage_clip", "entropy_bonus", "policy_critic", "reference_ratio")


@dataclass(frozen=True, kw_only=True)
class AdvantageClip(Credit):
    """Advantages within ±bound."""

    needs: ClassVar[tuple[str, ...]] = ("advantage",)
    bound: float = 0.5

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        return batch.replace(advantage=batch.advantage.clamp(-self.bound, self.bound))


@dataclass(frozen=True, kw_only=True)
class RatioToReference(Credit):
    """The ratio's centre is the reference, not the policy that sampled."""

    needs: ClassVar[tuple[str, ...]] = ("ref_logp",)
    gives: ClassVar[tuple[str, ...]] = ("old_logp",)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        return batch.replace(old_logp=batch.ref_logp)


@dataclass(frozen=True, kw_only=True)
class FromRewardModel(Rewarded):
    """A rewarded stage whose critic starts from the reward model."""

    def build(
        self, artifacts: Mapping[str, Learner], problem: Any, policy: Any, seed: int, budget: Budget | None
    ) -> Learner:
        critic = replace(self.method.critic, start=reward_model(artifacts, self.by))
        made = replace(self, method=replace(self.method, critic=critic))
        return Rewarded.build(made, artifacts, problem, policy, seed, budget)


@dataclass(frozen=True, kw_only=True)
class FromCritic(Rewarded):
    """A rewarded stage whose critic starts from that of the stage ``pretrained``."""

    pretrained: str = "critic"

    def build(
        self, artifacts: Mapping[str, Learner], problem: Any, policy: Any, seed: int, budget: Budget | None
    ) -> Learner:
        finished = artifacts[self.pretrained]
        assert isinstance(finished, CriticTrainingLearner)
        critic = replace(self.method.critic, start=finished.critic)
        made = replace(self, method=replace(self.method, critic=critic))
        return Rewarded.build(made, artifacts, problem, policy, seed, budget)


def credit(reward: tuple[Credit, ...], eta: float) -> tuple[Credit, ...]:
    """From a response's reward to advantages, with the penalty η k1 in every token's reward."""
    return (*reward, RewardAtEnd(), ReferencePenalty(coefficient=eta), GeneralizedAdvantage(lam=0.95, whiten=False))


def training() -> OnPolicy:
    """The last stage."""
    return replace(
        ppo.method(),
        collector=Together(main=Groups(prompts=128, samples=1), others={"text": Demonstrations(prompts=32)}),
        annotators=(Reference(),),
        critic=Critic(clip=0.2),
        credit=credit((RunningReward(clip=0.8),), eta=0.05),
        objectives={"text": Imitation()},
        epochs=1,
        minibatches=4,
    )


REWARD, CRITIC = Budget(updates=500), Budget(updates=50)


def staged(last: OnPolicy, *, reward: Budget = REWARD, critic: Budget = CRITIC) -> Stages:
    """Reward model, critic under the initial policy, PPO."""
    shared = ("annotators", "critic", "credit", "optimizer", "epochs", "minibatches", "micro_batch")
    alone = CriticTraining(collector=Groups(prompts=128, samples=1), **{name: getattr(last, name) for name in shared})
    return Stages(
        stages=(
            Stage(name="reward", method=with_language_loss(), until=reward),
            FromRewardModel(name="critic", method=alone, until=critic),
            FromCritic(name="ppo", method=last),
        )
    )


def method() -> Stages:
    return staged(training())


def vanilla() -> Stages:
    plain = replace(
        training(),
        collector=Groups(prompts=128, samples=1),
        annotators=(),
        credit=(RewardAtEnd(), GeneralizedAdvantage(lam=0.95, whiten=False)),
        critic=Critic(),
        objectives={},
    )
    reward, *_ = staged(plain).stages
    return Stages(stages=(reward, Rewarded(name="ppo", method=plain)))


def reward_scaling() -> Stages:
    return staged(replace(training(), credit=credit((RunningReward(centre=False),), eta=0.05)))


def advantage_clip() -> Stages:
    *first, _ = training().credit
    clipped = (*first, GeneralizedAdvantage(lam=0.95, whiten=True), AdvantageClip())
    return staged(replace(training(), credit=clipped))


def entropy_bonus() -> Stages:
    objective = training().objective
    assert isinstance(objective, PolicyGradient)
    return staged(replace(training(), objective=replace(objective, regularizers=(EntropyBonus(coefficient=0.01),))))


def policy_critic() -> Stages:
    reward, _, last = method().stages
    return Stages(stages=(reward, Rewarded(name="ppo", method=last.method)))


def reference_ratio() -> Stages:
    return staged(replace(training(), credit=(RatioToReference(), *training().credit)))
