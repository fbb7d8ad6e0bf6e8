"""UCBVI: upper confidence bound value iteration, optimism without any constraint (arXiv 1703.05449).

    Q_h(s, a) = min(r + P̂ V_{h+1} + b, H − h),   V_h(s) = max_a Q_h(s, a)
    b = c (√(2 Var(V_{h+1}) L / n) + H L / n),   the variance under P̂, n visits of (h, s, a), L = log(2 S A H K)

The bonus keeps the paper's variance-aware form. One scale c = 0.1 stands in place of its constants, under which
nothing would be learned in a few thousand episodes.
"""

from __future__ import annotations

from policyopt.learners.tabular import OptimisticPlanning

FAMILY = "baselines"


def method() -> OptimisticPlanning:
    return OptimisticPlanning()
