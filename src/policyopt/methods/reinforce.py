"""REINFORCE: the likelihood-ratio policy gradient (Williams, 1992), for whole responses or whole episodes.

loss = -mean over responses of reward · log π(response). Two baselines beside the plain form: the batch mean as a variant,
the others of a group as ``rloo``. For control (``control``, taken by itself where the problem is one) each action is paid
for the discounted rewards that follow it, without the factor γ^t, as is usual; ``control_baseline`` subtracts a linear
function of state and time that was fitted to the episodes of the step before.
"""

from dataclasses import replace

from policyopt.credit.outcomes import BatchBaseline, Outcome
from policyopt.credit.reward_to_go import LinearBaseline, RewardToGo
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.models.control import MLP
from policyopt.objectives.estimators import SequenceSum
from policyopt.objectives.policy_gradient import Current, PolicyGradient
from policyopt.rollouts.episodes import Episodes
from policyopt.rollouts.language import Groups

FAMILY = "baselines"
VARIANTS = ("batch_mean", "control", "control_baseline")

PLAIN = PolicyGradient(denominator=Current(), aggregation=SequenceSum())


def method() -> OnPolicy:
    return OnPolicy(
        collector=Groups(prompts=256, samples=1),
        credit=(Outcome(),),
        objective=PLAIN,
    )


def batch_mean() -> OnPolicy:
    """The mean reward of the batch as a baseline."""
    return replace(method(), credit=(BatchBaseline(),))


def control() -> OnPolicy:
    """For environments: ``policyopt train reinforce --problem gym:CartPole-v1``."""
    return OnPolicy(
        policy=MLP(hidden=(64, 64), standardize=False),
        collector=Episodes(episodes=16, gamma=0.99),
        credit=(RewardToGo(from_start=False),),
        objective=PLAIN,
        optimizer=Adam(learning_rate=3e-3, gradient_clip=0.5),
    )


def control_baseline() -> OnPolicy:
    """With a linear baseline."""
    return replace(control(), credit=(LinearBaseline(from_start=False),))
