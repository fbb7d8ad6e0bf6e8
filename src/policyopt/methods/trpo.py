"""TRPO: the longest step of the natural gradient that stays in a trust region (arXiv 1502.05477, Eq. 14 and §6, App. C).

    maximise E[π(a | s) / π_old(a | s) · A]   subject to   E KL(π_old(· | s) ‖ π(· | s)) ≤ δ

To first and second order: θ + √(2δ / x·F x) x with F x = g, solved by conjugate gradients on products with the Fisher
matrix F, the curvature of the divergence. Both orders are approximations, so the step is halved until the divergence is
within δ and the objective has grown; where it never does, the policy stays as it is.

Settings that the paper leaves open: δ = 0.01, ten iterations, 0.1 is added to the diagonal of F. Collector, credit and
networks are ``ppo:control``'s; the critic is trained for five passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn.utils import parameters_to_vector

from policyopt.credit.returns import GeneralizedAdvantage
from policyopt.credit.scaling import RewardScaling, SingleSteps
from policyopt.learners.constrained import assign, flat_gradient, trust_region_step
from policyopt.learners.critic import Critic
from policyopt.learners.on_policy import OnPolicy, OnPolicyLearner
from policyopt.learners.update import Adam, NonFinite
from policyopt.models.control import MLP
from policyopt.rollouts.vector import Vector
from policyopt.types import Budget, Rollouts

FAMILY = "baselines"


def line_search(measure: Callable[[float], tuple[float, float]], radius: float, attempts: int) -> float:
    """The first of 1, 1/2, 1/4, … with a positive gain and a divergence within ``radius``; 0 where none of ``attempts``
    has both. ``measure`` gives (gain, divergence) at a fraction of the step; what isn't finite is refused."""
    for attempt in range(attempts):
        fraction = 0.5**attempt
        gain, divergence = measure(fraction)
        if 0.0 < gain < float("inf") and divergence <= radius:
            return fraction
    return 0.0


@dataclass(frozen=True, kw_only=True)
class TrustRegion(OnPolicy):
    """One step of the policy for each collection; ``epochs``, ``minibatches`` are the critic's, and ``objective`` and
    ``optimizer`` have no part. Raises ValueError for settings that make no sense."""

    radius: float = 0.01
    damping: float = 0.1
    iterations: int = 10
    attempts: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.radius > 0.0 or self.damping < 0.0 or min(self.iterations, self.attempts) < 1:
            raise ValueError(
                "radius, iterations and attempts must be positive and damping not negative, got "
                f"{self.radius:g}, {self.iterations}, {self.attempts} and {self.damping:g}"
            )

    def learner(
        self, problem: object, policy: object = None, *, seed: int, budget: Budget | None = None
    ) -> TrustRegionLearner:
        return TrustRegionLearner(self, problem, policy, seed, budget)


class TrustRegionLearner(OnPolicyLearner):
    """One natural step a collection, shortened until it is allowed and an improvement."""

    method: TrustRegion

    def natural_step(self, batch: Rollouts) -> Tensor:
        """The full step [P], before the line search."""
        parameters = list(self.policy.parameters())
        present = self.policy.distribution(batch.observations)
        with torch.no_grad():
            old = self.policy.distribution(batch.observations)
        gradient = flat_gradient(gain(present.log_prob(batch.actions), batch), parameters)
        slope = flat_gradient(kl_divergence(old, present)[batch.mask].mean(), parameters, create_graph=True)

        def product(vector: Tensor) -> Tensor:
            return flat_gradient(slope @ vector, parameters) + self.method.damping * vector

        none = gradient.new_zeros(0, len(gradient))
        return trust_region_step(gradient, none, none[:, 0], product, self.method.radius, self.method.iterations)

    def _improve(self, batches: dict[str, Any]) -> dict[str, Tensor | float]:
        batch: Rollouts = batches["rollouts"]
        parameters = list(self.policy.parameters())
        step, start = self.natural_step(batch), parameters_to_vector(parameters).detach()
        if not bool(torch.isfinite(step).all()):
            raise NonFinite(f"step {self.clock.step}: the natural gradient is not finite; the weights are unchanged")
        with torch.no_grad():
            old = self.policy.distribution(batch.observations)
            before = gain(old.log_prob(batch.actions), batch)

        @torch.no_grad()
        def measure(fraction: float) -> tuple[float, float]:
            assign(parameters, start + fraction * step)
            moved = self.policy.distribution(batch.observations)
            grown = gain(moved.log_prob(batch.actions), batch) - before
            return float(grown), float(kl_divergence(old, moved)[batch.mask].mean())

        fraction = line_search(measure, self.method.radius, self.method.attempts)
        grown, divergence = measure(fraction)  # leaves the policy where the search has ended
        return {"loss/policy": -grown, "policy/kl_exact": divergence, "policy/step_fraction": fraction}


def gain(logp: Tensor, batch: Rollouts) -> Tensor:
    """The mean of importance ratio · advantage, from log-probabilities [N, T]."""
    return ((logp - batch.behaviour_logp).exp() * batch.advantage)[batch.mask].mean()


def method() -> TrustRegion:
    return TrustRegion(
        policy=MLP(hidden=(64, 64), standardize=True),
        collector=Vector(environments=8, steps=256, gamma=0.99),
        critic=Critic(optimizer=Adam(learning_rate=1e-3, gradient_clip=None)),
        credit=(RewardScaling(), GeneralizedAdvantage(lam=0.95), SingleSteps()),
        epochs=5,
        minibatches=16,
    )
