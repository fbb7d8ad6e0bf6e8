"""PPO: proximal policy optimization with a critic and generalized advantages (arXiv 1707.06347, 1506.02438).

For language: a response is one episode with its reward at the end, γ = 1; the critic has the policy's own shape, starts
from its weights with a value head of zeros, and is trained apart with its own optimizer.
"""

from policyopt.credit.returns import GeneralizedAdvantage, RewardAtEnd
from policyopt.learners.critic import Critic
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip, TokenMean
from policyopt.rollouts.language import Groups

FAMILY = "baselines"


def method() -> OnPolicy:
    return OnPolicy(
        collector=Groups(prompts=256, samples=1),
        critic=Critic(optimizer=Adam(learning_rate=1e-3), clip=0.2),
        credit=(RewardAtEnd(gamma=1.0), GeneralizedAdvantage(lam=0.95)),
        objective=PolicyGradient(stabilization=RatioClip(low=0.2, high=0.2), aggregation=TokenMean()),
        optimizer=Adam(learning_rate=1e-3),
        epochs=2,
        minibatches=4,
    )
