"""PPO: proximal policy optimization with a critic and generalized advantages (arXiv 1707.06347, 1506.02438).

For language: a response is one episode with its reward at the end, γ = 1; the critic has the policy's own shape, starts
from its weights with a value head of zeros, and is trained apart with its own optimizer. For control (``control``, taken
by itself where the problem is one): the same objective and advantages on steps of environments, with the settings that
are usual for MuJoCo: observations standardized, rewards scaled by the deviation of their discounted return, learning
rates that fall to zero over the budget.
"""

from policyopt.credit.returns import GeneralizedAdvantage, RewardAtEnd
from policyopt.credit.scaling import RewardScaling, SingleSteps
from policyopt.learners.critic import Critic
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam, Linear
from policyopt.models.control import MLP
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip, TokenMean
from policyopt.rollouts.language import Groups
from policyopt.rollouts.vector import Vector

FAMILY = "baselines"
VARIANTS = ("control",)

CLIPPED = PolicyGradient(stabilization=RatioClip(low=0.2, high=0.2), aggregation=TokenMean())


def method() -> OnPolicy:
    return OnPolicy(
        collector=Groups(prompts=256, samples=1),
        critic=Critic(clip=0.2),
        credit=(RewardAtEnd(gamma=1.0), GeneralizedAdvantage(lam=0.95)),
        objective=CLIPPED,
        epochs=2,
        minibatches=4,
    )


def control() -> OnPolicy:
    """For environments: ``policyopt train ppo --problem gym:Hopper-v5``."""
    adam = Adam(learning_rate=3e-4, schedule=Linear(), gradient_clip=0.5, epsilon=1e-5)
    return OnPolicy(
        policy=MLP(hidden=(64, 64), standardize=True),
        collector=Vector(environments=8, steps=256, gamma=0.99),
        critic=Critic(optimizer=adam, clip=0.2),
        credit=(RewardScaling(), GeneralizedAdvantage(lam=0.95), SingleSteps()),
        objective=CLIPPED,
        optimizer=adam,
        epochs=10,
        minibatches=32,
    )
