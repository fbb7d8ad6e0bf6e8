"""REINFORCE: the likelihood-ratio policy gradient (Williams, 1992), here for whole responses.

loss = -mean over responses of reward · log π(response). Two baselines beside the plain form: the batch mean as a variant,
the others of a group as ``rloo``. On a control problem: the discounted return that follows each action, less a critic's
value of the state; the critic also stands for what comes after the collected steps.
"""

from dataclasses import replace

from policyopt.credit.groups import BatchBaseline, Outcome
from policyopt.credit.returns import GeneralizedAdvantage
from policyopt.learners.critic import Critic
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.models.control import MLP
from policyopt.objectives.estimators import SequenceSum
from policyopt.objectives.policy_gradient import Current, PolicyGradient, TokenMean
from policyopt.rollouts.language import Groups
from policyopt.rollouts.vector import Vector

FAMILY = "baselines"
VARIANTS = ("batch_mean", "control")


def method() -> OnPolicy:
    return OnPolicy(
        collector=Groups(prompts=256, samples=1),
        credit=(Outcome(),),
        objective=PolicyGradient(denominator=Current(), aggregation=SequenceSum()),
    )


def batch_mean() -> OnPolicy:
    """The mean reward of the batch as a baseline."""
    return replace(method(), credit=(BatchBaseline(),))


def control() -> OnPolicy:
    """What ``reinforce`` is on a control problem: one update on all that was collected."""
    adam = Adam(learning_rate=3e-3, gradient_clip=0.5)
    return OnPolicy(
        policy=MLP(hidden=(64, 64), standardize=True),
        collector=Vector(environments=8, steps=64, gamma=0.99),
        critic=Critic(optimizer=adam),
        credit=(GeneralizedAdvantage(lam=1.0),),
        objective=PolicyGradient(denominator=Current(), aggregation=TokenMean()),
        optimizer=adam,
    )
