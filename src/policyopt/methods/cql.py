"""CQL: soft actor-critic whose values are pushed down where the data show nothing (arXiv 2006.04779, the CQL(H) form).

    critics: SAC's ½ Σ_j (Q_j(s, a) − y)² + w Σ_j mean [log Z_j(s) − Q_j(s, a)]
    Z_j(s): the sum over 10 uniform actions, 10 of π(s) and 10 of π(s') of exp Q_j(s, a_i) / density(a_i)

The backup has no entropy, and takes the mode of the policy, as d3rlpy's; ``soft`` backs up SAC's target. w = 5 is fixed;
``lagrange`` learns it, so that the gap stays at 10. log Z is a sum, not a mean: a constant log 30 apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from policyopt.learners.acting import Agent, network
from policyopt.learners.off_policy import (
    LogTemperature,
    OffPolicy,
    Round,
    SoftCritic,
    SoftPolicy,
    Temperature,
    Update,
    regression,
)
from policyopt.learners.update import Adam
from policyopt.models.q_functions import QEnsemble
from policyopt.models.soft_actor import SoftActor, tanh_gaussian
from policyopt.types import Loss, Transitions

FAMILY = "baselines"
VARIANTS = ("soft", "lagrange")


def conservative_gap(sampled: Tensor, logp: Tensor, data: Tensor) -> Tensor:
    """The mean over rows of log Σ_i exp(Q(s, a_i) − log density(a_i)) − Q(s, a): values of sampled actions [K, N, M], their
    log-densities [N, M], values of the data's [K, N] → [K]."""
    return ((sampled - logp).logsumexp(-1) - data).mean(-1)


@torch.no_grad()
def proposals(agent: Agent, batch: Transitions, samples: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Actions [N, 3 ``samples``, A], uniform, of π(s), and of π(s'), with their log-densities [N, 3 ``samples``]."""
    uniform = 2.0 * torch.rand(len(batch.reward), samples, batch.action.shape[-1], generator=rng) - 1.0
    drawn = [(uniform, torch.full(uniform.shape[:2], -math.log(2.0) * uniform.shape[-1]))]
    for observation in (batch.observation, batch.next_observation):
        mean, log_deviation = (x.unsqueeze(1) for x in network(agent, "actor", SoftActor)(observation))
        drawn.append(tanh_gaussian(mean, log_deviation, torch.randn(uniform.shape, generator=rng)))
    actions, logp = zip(*drawn, strict=True)
    return torch.cat(actions, 1), torch.cat(logp, 1)


@dataclass(frozen=True, kw_only=True)
class ConservativeCritic(SoftCritic):
    """SAC's critics and the gap, in one forward. Raises ValueError for a negative weight or no samples."""

    weight: float = 5.0
    samples: int = 10
    soft: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight < 0.0 or self.samples < 1:
            raise ValueError(
                f"needs a weight of 0 or more and at least one sample, got {self.weight=}, {self.samples=}"
            )

    def next_action(self, agent: Agent, observation: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.soft:
            return super().next_action(agent, observation, rng)
        action = network(agent, "actor", SoftActor).mode(observation)
        return action, action.new_zeros(len(action))

    def values(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Values of the data's actions [K, N], and the gap of each head [K]."""
        actions, logp = proposals(agent, batch, self.samples, rng)
        critic = network(agent, "critic", QEnsemble)
        values = critic.many(batch.observation, torch.cat((batch.action.unsqueeze(1), actions), 1))
        return values[..., 0], conservative_gap(values[..., 1:], logp, values[..., 0])

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        target = self.target(agent, batch, rng)
        values, gap = self.values(agent, batch, rng)
        weight = agent["conservatism"]().detach() if "conservatism" in agent else 1.0
        loss = regression(values, target) + weight * self.weight * gap.sum()
        metrics = {"loss/value": loss.detach(), "value/mean": values.detach().mean(), "value/gap": gap.detach().mean()}
        return Loss(loss, metrics)


@dataclass(frozen=True, kw_only=True)
class Conservatism(Update):
    """A factor on the gap's weight, which rises while the gap is above its threshold: dual ascent in the log."""

    trains: ClassVar[str] = "conservatism"
    optimizer: Adam = Adam(learning_rate=1e-4, gradient_clip=None)
    critic: ConservativeCritic = ConservativeCritic()
    threshold: float = 10.0

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        return {"conservatism": LogTemperature(1.0)}

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        with torch.no_grad():
            gap = self.critic.values(agent, batch, rng)[1]
        factor = agent["conservatism"]()
        loss = -(factor * self.critic.weight * (gap - self.threshold)).mean()
        return Loss(loss, {"value/conservatism": factor.detach()})


def method() -> OffPolicy:
    return conservative(ConservativeCritic())


def soft() -> OffPolicy:
    return conservative(ConservativeCritic(soft=True))


def lagrange() -> OffPolicy:
    base = method()
    updates = (Conservatism(), *base.updates())
    return replace(base, rounds=(Round(updates=updates),))


def conservative(critic: ConservativeCritic) -> OffPolicy:
    slow = Adam(learning_rate=1e-4, gradient_clip=None)
    updates = (Temperature(optimizer=slow), critic, SoftPolicy(optimizer=slow))
    return OffPolicy(rounds=(Round(updates=updates),), collector=None)
