"""T-PPO: truncated PPO, which learns from responses before they are finished (arXiv 2506.15050).

Synchronous PPO waits for the longest response of a batch. Here every slot samples at most w tokens a step; unfinished
responses go on in the next one, finished ones make room for new prompts, and the two models learn from different tokens:

    policy   the tokens of this step, of finished and unfinished responses, with the extended advantages

                 δ_t = r_t + γ V_{t+1} - V_t,   A_t = Σ_k (γ λ)^k δ_{t+k}

             where V behind the cut of an unfinished response is taken to be V before its last token
    critic   the responses that finished in this step, all their tokens; the target is what was earned (Monte Carlo)

    next_value   behind a cut stands the critic's value of the state that was reached
    all_tokens   the policy learns from former tokens of its unfinished responses again

The ratio of a token is to the policy that sampled it; that its prefix may come from older ones is not corrected. Not settled by
what is public of the paper, chosen here: γ = 1, λ = 0.95, whitened advantages, clip 0.2 below and 0.28 above, no divergence
penalty, two epochs for the critic. A step in which nothing finishes leaves the critic as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from policyopt.credit.groups import Credit
from policyopt.credit.returns import MonteCarloTargets, RewardAtEnd, extended_advantage, whitened
from policyopt.learners.critic import Critic
from policyopt.learners.on_policy import OnPolicy
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip, TokenMean
from policyopt.rollouts.windows import Windows
from policyopt.types import Rollouts

FAMILY = "language"
VARIANTS = ("next_value", "all_tokens")


@dataclass(frozen=True, kw_only=True)
class ExtendedAdvantage(Credit):
    """``extended_advantage`` of rows that are finished or cut, the reward at the end of the finished ones."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "value", "next_value", "terminated", "truncated")
    gives: ClassVar[tuple[str, ...]] = ("advantage",)
    gamma: float = 1.0
    lam: float = 0.95
    bootstrap: Literal["prev", "next"] = "prev"
    whiten: bool = True

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        rewards = batch.terminated * batch.scores["reward"][:, None]
        ends = batch.terminated, batch.truncated
        advantage = extended_advantage(
            rewards, batch.value, batch.next_value, *ends, self.gamma, self.lam, self.bootstrap
        )
        return batch.replace(advantage=whitened(advantage, batch.mask) if self.whiten else advantage * batch.mask)


def method() -> OnPolicy:
    return OnPolicy(
        collector=Windows(slots=256, window=32),
        critic=Critic(batch="completed", credit=(RewardAtEnd(gamma=1.0), MonteCarloTargets())),
        credit=(ExtendedAdvantage(),),
        objective=PolicyGradient(stabilization=RatioClip(low=0.2, high=0.28), aggregation=TokenMean()),
        epochs=2,
        minibatches=4,
    )


def next_value() -> OnPolicy:
    return replace(method(), credit=(ExtendedAdvantage(bootstrap="next"),))


def all_tokens() -> OnPolicy:
    return replace(method(), collector=Windows(slots=256, window=32, whole=True))
