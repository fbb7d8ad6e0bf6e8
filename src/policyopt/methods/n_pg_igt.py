"""N-PG-IGT: normalized policy gradient with implicit gradient transport; and N-HARPG (arXiv 2302.01734).

A policy gradient from one trajectory is noisy, and an average over past iterates is biased: they had other parameters.
Both methods remove that bias without importance ratios. N-PG-IGT samples at an EXTRAPOLATED point, N-HARPG carries the
old average along the last step by a product with the Hessian at a random point of it:

    N-PG-IGT:  θ̃ = θ_t + (1-η)/η (θ_t - θ_{t-1}),   d_t = (1-η) d_{t-1} + η g(τ, θ̃),   τ ~ π_θ̃
    N-HARPG:   d_t = (1-η) (d_{t-1} + B(τ̂, θ̂) (θ_t - θ_{t-1})) + η g(τ, θ_t),   θ̂ = q θ_t + (1-q) θ_{t-1},   q ~ U[0, 1]
    both:      θ_{t+1} = θ_t + γ_t d_t / ‖d_t‖

With Ψ_t = Σ_{h≥t} γ^h r_h, less a baseline where there is one, and Φ = Σ_t Ψ_t log π(a_t|s_t), the estimates of one
trajectory are g = ∇Φ and B = ∇Φ (∇ log p(τ))ᵀ + ∇²Φ, whose mean is the Hessian of the expected return.

    method   N-PG-IGT        n_harpg   as above       harpg   not normalized: ‖d‖ is cut at 10 instead
    pg       plain gradient  nsgdm     normalized momentum, gradients at θ_t and nothing done about the bias

Chosen here: the first step is the raw gradient; the cut of HARPG, which diverges without one where rewards have no bound;
batches of ten trajectories and a fitted baseline as defaults (the theory needs one trajectory and none).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from policyopt.credit.groups import Credit
from policyopt.credit.reward_to_go import LinearBaseline
from policyopt.learners.constrained import flat_gradient
from policyopt.learners.update import NonFinite
from policyopt.models.control import MLP
from policyopt.models.mlp import Architecture
from policyopt.rollouts.episodes import Episodes
from policyopt.types import Budget, Clock, Part, Rollouts

FAMILY = "control"
VARIANTS = ("n-harpg", "harpg", "pg", "nsgdm")


def surrogate(policy: Any, batch: Rollouts) -> tuple[Tensor, Tensor]:
    """(Φ, log p) [N] of each trajectory, with gradient: Σ_t Ψ_t log π(a_t|s_t), Ψ the advantage, and Σ_t log π(a_t|s_t)."""
    logp = policy.evaluate(batch).logp * batch.mask
    return (batch.advantage * logp).sum(1), logp.sum(1)


def gradient_estimate(policy: Any, batch: Rollouts, parameters: list[Tensor]) -> Tensor:
    """The mean of g = ∇Φ over trajectories, [P]."""
    return flat_gradient(surrogate(policy, batch)[0].mean(), parameters)


def hessian_product(policy: Any, batch: Rollouts, parameters: list[Tensor], vector: Tensor) -> Tensor:
    """The mean of B v = ∇Φ ⟨∇ log p, v⟩ + (∇²Φ) v over trajectories, [P], v = ``vector``; nothing [P, P] is formed.

    ⟨∇ log p_i, v⟩ of every trajectory i at once: the gradient of Σ u_i log p_i is linear in u, its product with v as well.
    """
    phi, logp = surrogate(policy, batch)
    ones = torch.ones_like(logp, requires_grad=True)
    along = flat_gradient((ones * logp).sum(), parameters, create_graph=True) @ vector
    (change,) = torch.autograd.grad(along, ones, retain_graph=True)
    slope = flat_gradient(phi.mean(), parameters, create_graph=True) @ vector
    return flat_gradient((phi * change).mean() + slope, parameters)


class Oracle(Protocol):
    """What can be asked about the expected return J, with noise. Every call samples new trajectories at the point."""

    def gradient(self, point: Tensor) -> Tensor: ...
    def product(self, point: Tensor, vector: Tensor) -> Tensor: ...
    def uniform(self) -> float: ...


class Iterate(NamedTuple):
    """θ_t, θ_{t-1} and d_{t-1}, all [P]; no direction before the first step."""

    current: Tensor
    previous: Tensor
    direction: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Decay(Part):
    """initial · (2 / (t + 2))^power. Raises ValueError for an initial value that isn't positive."""

    initial: float = 1.0
    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.initial > 0.0 or self.power < 0.0:
            raise ValueError(f"a decay begins with a positive number and falls, got {self}")

    def __call__(self, step: int) -> float:
        return float(self.initial * (2.0 / (step + 2)) ** self.power)


@dataclass(frozen=True, kw_only=True)
class Direction(Part):
    """Where to go from an iterate; here along a new gradient."""

    def __call__(self, oracle: Oracle, at: Iterate, step: int) -> Tensor:
        """d_t [P]."""
        return oracle.gradient(at.current)


@dataclass(frozen=True, kw_only=True)
class Momentum(Direction):
    """(1-η) d_{t-1} + η g(θ_t), with η = ``share`` of the step, at most 1. Raises ValueError where it begins above 1."""

    share: Decay = Decay(power=2 / 3)

    def __post_init__(self) -> None:
        if self.share.initial > 1.0:
            raise ValueError(f"the share of the new gradient is at most 1, got {self.share.initial:g}")

    def __call__(self, oracle: Oracle, at: Iterate, step: int) -> Tensor:
        if at.direction is None:
            return oracle.gradient(at.current)
        share = self.share(step)
        return (1.0 - share) * self.carried(oracle, at) + share * oracle.gradient(self.point(at, share))

    def point(self, at: Iterate, share: float) -> Tensor:
        """Where the new gradient is sampled, [P]."""
        return at.current

    def carried(self, oracle: Oracle, at: Iterate) -> Tensor:
        """d_{t-1}, brought to θ_t, [P]."""
        assert at.direction is not None
        return at.direction


@dataclass(frozen=True, kw_only=True)
class Transported(Momentum):
    """Gradients at θ_t + (1-η)/η (θ_t - θ_{t-1}): their average is the gradient at θ_t itself where J is quadratic."""

    share: Decay = Decay(power=4 / 5)

    def point(self, at: Iterate, share: float) -> Tensor:
        return at.current + (1.0 - share) / share * (at.current - at.previous)


@dataclass(frozen=True, kw_only=True)
class HessianCorrected(Momentum):
    """d_{t-1} + B(θ̂) (θ_t - θ_{t-1}) in the place of d_{t-1}, θ̂ uniform between the two: without bias for any J."""

    share: Decay = Decay(power=1.0)

    def carried(self, oracle: Oracle, at: Iterate) -> Tensor:
        moved, q = at.current - at.previous, oracle.uniform()
        return super().carried(oracle, at) + oracle.product(at.previous + q * moved, moved)


@dataclass(frozen=True, kw_only=True)
class Length(Part):
    """How far to go along d: as far as it is long, ‖d‖ at most ``limit``."""

    limit: float = float("inf")

    def __call__(self, direction: Tensor) -> Tensor:
        return direction * (self.limit / direction.norm()).clamp(max=1.0)


@dataclass(frozen=True, kw_only=True)
class Unit(Length):
    """d / ‖d‖, over all parameters together: a step is as long as the step size says."""

    limit: float = 1.0

    def __call__(self, direction: Tensor) -> Tensor:
        return self.limit * direction / (direction.norm() + 1e-12)


@dataclass(frozen=True, kw_only=True)
class PolicyAscent:
    """Steps of ``step_size`` on all parameters at once, along a direction that is made from whole trajectories.

    ``credit`` says what Ψ is. The policy that is evaluated is θ_t, never the point at which trajectories were sampled.
    """

    policy: Architecture = MLP(hidden=(64, 64), standardize=False)
    collector: Episodes = Episodes(episodes=10)
    credit: Credit = LinearBaseline()
    direction: Direction = Transported()
    length: Length = Unit()
    step_size: Decay = Decay(initial=0.1, power=1.0)

    def learner(
        self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None
    ) -> PolicyAscentLearner:
        return PolicyAscentLearner(self, problem, policy, seed, budget)


class PolicyAscentLearner:
    """The live method; as an oracle it plays the problem with the parameters that it is asked about."""

    def __init__(self, method: PolicyAscent, problem: Any, policy: Any, seed: int, budget: Budget | None) -> None:
        self.method, self.problem, self.budget = method, problem, budget
        self.policy = method.policy.build(problem, seed) if policy is None else policy
        self.clock = Clock(seed=seed)
        self.parameters = [p for p in self.policy.parameters() if p.requires_grad]
        start = self._point()
        self.at = Iterate(start, start, None)
        self.baseline = method.credit.memory()
        self.spent: dict[str, Tensor | float] = {}

    def step(self) -> dict[str, Tensor | float]:
        """One step. Raises NonFinite, with the policy at θ_t, where the direction is not finite."""
        self.spent, (step, current) = {"cost/env_steps": 0.0}, (self.clock.step, self.at.current)
        direction = self.method.direction(self, self.at, step)
        norm, size = direction.norm(), self.method.step_size(step)
        if not bool(torch.isfinite(norm)):
            self._go_to(current)
            raise NonFinite(f"step {step}: the direction is not finite; the weights are unchanged. Try smaller steps")
        following = current + size * self.method.length(direction)
        self.at = Iterate(following, current, direction)
        self._go_to(following)
        metrics = {**self.spent, "gradient/norm": norm, "policy/step": (following - current).norm()}
        self.clock.advance(metrics, self.budget)
        return metrics

    def gradient(self, point: Tensor) -> Tensor:
        return gradient_estimate(self.policy, self._trajectories(point, "episodes"), self.parameters)

    def product(self, point: Tensor, vector: Tensor) -> Tensor:
        return hessian_product(self.policy, self._trajectories(point, "segment"), self.parameters, vector)

    def uniform(self) -> float:
        return float(torch.rand((), generator=self.clock.generator("segment point")))

    def _trajectories(self, point: Tensor, stream: str) -> Rollouts:
        self._go_to(point)
        collected = replace(self.method.collector, stream=stream)(self.policy, self.problem, self.clock)
        played = self.spent["cost/env_steps"] + collected.metrics["cost/env_steps"]
        self.spent = {**collected.metrics, "cost/env_steps": played}
        return self.method.credit(collected.batches["rollouts"], self.baseline)

    def _point(self) -> Tensor:
        return parameters_to_vector(self.parameters).detach().clone()

    def _go_to(self, point: Tensor) -> None:
        with torch.no_grad():
            vector_to_parameters(point.clone(), self.parameters)

    def state_dict(self) -> dict[str, Any]:
        return {
            "clock": self.clock.state_dict(),
            "policy": self.policy.state_dict(),
            "previous": self.at.previous,
            "direction": self.at.direction,
            "baseline": None if self.baseline is None else self.baseline.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clock.load_state_dict(state["clock"])
        self.policy.load_state_dict(state["policy"])
        self.at = Iterate(self._point(), state["previous"], state["direction"])
        if self.baseline is not None:
            self.baseline.load_state_dict(state["baseline"])


def method() -> PolicyAscent:
    return PolicyAscent()


def n_harpg() -> PolicyAscent:
    return PolicyAscent(direction=HessianCorrected())


def harpg() -> PolicyAscent:
    """Without normalization; ‖d‖ is cut at 10."""
    return PolicyAscent(direction=HessianCorrected(), length=Length(limit=10.0), step_size=Decay(power=1 / 2))


def pg() -> PolicyAscent:
    """The plain stochastic policy gradient."""
    return PolicyAscent(direction=Direction(), length=Length(), step_size=Decay(power=2 / 3))


def nsgdm() -> PolicyAscent:
    """Normalized momentum without transport."""
    return PolicyAscent(direction=Momentum())
