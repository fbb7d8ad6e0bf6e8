"""SFT: supervised fine-tuning, imitation of demonstrations by maximum likelihood.

In the unified view (arXiv 2509.04419) it is a policy gradient with advantage 1 on demonstrations: the loss is the mean over
the batch's tokens of -log π.
"""

from policyopt.credit.outcomes import Constant
from policyopt.learners.on_policy import OnPolicy
from policyopt.objectives.policy_gradient import Current, PolicyGradient, TokenMean
from policyopt.rollouts.written import Demonstrations

FAMILY = "baselines"


def method() -> OnPolicy:
    return OnPolicy(
        collector=Demonstrations(prompts=64),
        credit=(Constant(),),
        objective=PolicyGradient(denominator=Current(), aggregation=TokenMean()),
    )
