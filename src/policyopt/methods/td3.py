"""TD3: a deterministic actor, twin Q-functions under a smoothed target, delayed updates of the actor (arXiv 1802.09477).

    y = r + γ (1 − d) min_j Q̄_j(s', clip(π̄(s') + clip(ε, ±0.5), ±1)),   ε ~ N(0, 0.2²)
    critics: ½ Σ_j (Q_j(s, a) − y)²;   actor, on every second batch: −Q_1(s, π(s)), and both targets follow then

The paper's networks; rate 3e-4 for all, as in the authors' later code. It gathers with noise of deviation 0.1 after 5000
uniformly random steps. The ½ leaves Adam's steps as they are.
"""

from policyopt.learners.acting import Exploring
from policyopt.learners.off_policy import DeterministicPolicy, OffPolicy, Round, SmoothedCritic

FAMILY = "baselines"


def method() -> OffPolicy:
    return OffPolicy(rounds=(Round(updates=(SmoothedCritic(), DeterministicPolicy())),), acting=Exploring())
