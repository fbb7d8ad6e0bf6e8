"""TD3+BC: TD3 on a data set, its actor pulled to the data's actions (arXiv 2106.06860).

    actor: −(α / mean |Q_1(s, π(s))|) · mean Q_1(s, π(s)) + mean (π(s) − a)²,   α = 2.5

Observations are standardized by the data set, with 1e-3 added to the deviations.
"""

from policyopt.learners.acting import Exploring
from policyopt.learners.data import Standardize
from policyopt.learners.off_policy import DeterministicPolicy, OffPolicy, Round, SmoothedCritic
from policyopt.objectives.behaviour import BehaviourRegularizer

FAMILY = "baselines"


def method() -> OffPolicy:
    return regularized(BehaviourRegularizer())


def regularized(regularizer: BehaviourRegularizer, value_weight: float = 2.5) -> OffPolicy:
    """TD3 on the problem's data with this regularizer."""
    actor = DeterministicPolicy(value_weight=value_weight, regularizer=regularizer)
    return OffPolicy(
        rounds=(Round(updates=(SmoothedCritic(), actor)),),
        acting=Exploring(noise=0.0),
        collector=None,
        standardize=Standardize(),
    )
