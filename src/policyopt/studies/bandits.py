"""What studies on contextual bandits share: bandits drawn from a seed, and a method trained on one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from policyopt.models.log_linear import LogLinearPolicy
from policyopt.problems.decision.bandit import Bandit, logged
from policyopt.studies.claim import Metrics
from policyopt.types import generator

SMOKE_UPDATES = 3


def linear(seed: int, *, pairs: int, flips: float) -> Bandit:
    """40 contexts, 10 actions, a reward linear in 10 features with a parameter of norm 2; logged pairs of random actions."""
    rng = generator(seed, "linear-bandit")
    features = torch.randn(40, 10, 10, generator=rng, dtype=torch.float64)
    parameter = torch.randn(10, generator=rng, dtype=torch.float64)
    reward = features @ (2.0 * parameter / parameter.norm())
    plain = Bandit(reward=reward, features=features, reference=torch.zeros_like(reward))
    data = logged(plain, plain.reference_probability, pairs, rng, flips=flips, distinct=True)
    return Bandit(reward=reward, features=features, reference=plain.reference, pairs=data)


COVERED = 5


def partly_covered(seed: int, *, linear_everywhere: bool = False) -> Bandit:
    """30 contexts, 20 actions, of which the reference prefers 5, and 150 logged pairs compare these alone.

    Their reward is linear in 20 features; the others have the reward -2 (``linear_everywhere``: the linear one too), which
    nothing in the data says.
    """
    rng = generator(seed, "partly-covered-bandit")
    features = torch.randn(30, 20, 20, generator=rng, dtype=torch.float64) / 20**0.5
    parameter = torch.randn(20, generator=rng, dtype=torch.float64)
    reward = 2.0 * features @ parameter
    if not linear_everywhere:
        reward[:, COVERED:] = -2.0
    reference = torch.zeros_like(reward)
    reference[:, :COVERED] = 3.5
    plain = Bandit(reward=reward, features=features, reference=reference)
    sampler = plain.reference_probability.clone()
    sampler[:, COVERED:] = 0.0
    data = logged(plain, sampler, 150, rng, distinct=True)
    return Bandit(reward=reward, features=features, reference=reference, pairs=data)


def covered_mass(probability: torch.Tensor) -> float:
    """What a policy [C, A] gives to the covered actions."""
    return float(probability[:, :COVERED].sum(1).mean())


@dataclass(frozen=True, kw_only=True)
class BanditArm:
    """``method`` for ``updates`` steps on the bandit that ``problem`` draws for a seed; ``measure`` looks at the result."""

    problem: Callable[[int], Bandit]
    method: Any
    updates: int
    measure: Callable[[Bandit, LogLinearPolicy], Metrics]

    def __call__(self, seed: int, smoke: bool) -> Metrics:
        bandit = self.problem(seed)
        policy = LogLinearPolicy(bandit)
        learner = self.method.learner(bandit, policy, seed=seed)
        for _ in range(SMOKE_UPDATES if smoke else self.updates):
            learner.step()
        return self.measure(bandit, policy)
