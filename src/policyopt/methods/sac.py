"""SAC: soft actor-critic with twin Q-functions and an automatic temperature (arXiv 1812.05905).

    y = r + γ (1 − d) (min_j Q̄_j(s', a') − α log π(a' | s')),   a' ~ π
    actor: E[α log π(a | s) − min_j Q_j(s, a)];   temperature: the entropy stays at −A

The paper's networks and rates; 5000 uniformly random steps come first.
"""

from policyopt.learners.off_policy import OffPolicy

FAMILY = "baselines"


def method() -> OffPolicy:
    return OffPolicy()
