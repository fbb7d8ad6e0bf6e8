"""REINFORCE: the likelihood-ratio policy gradient (Williams, 1992), here for whole responses.

loss = -mean over responses of reward · log π(response). Two baselines beside the plain form: the batch mean as a variant,
the others of a group as ``rloo``.
"""

from dataclasses import replace

from policyopt.credit.outcomes import BatchBaseline, Outcome
from policyopt.learners.on_policy import OnPolicy
from policyopt.objectives.estimators import SequenceSum
from policyopt.objectives.policy_gradient import Current, PolicyGradient
from policyopt.rollouts.language import Groups

FAMILY = "baselines"
VARIANTS = ("batch_mean",)


def method() -> OnPolicy:
    return OnPolicy(
        collector=Groups(prompts=256, samples=1),
        credit=(Outcome(),),
        objective=PolicyGradient(denominator=Current(), aggregation=SequenceSum()),
    )


def batch_mean() -> OnPolicy:
    """The mean reward of the batch as a baseline."""
    return replace(method(), credit=(BatchBaseline(),))
