"""IQL: implicit Q-learning, which never asks for the value of an action that the data don't show (arXiv 2110.06169).

    V: mean |τ − 1{u < 0}| u²,   u = min_j Q̄_j(s, a) − V(s)          (an expectile: τ = 0.5 is the mean, 1 the maximum)
    Q_j: ½ Σ_j mean (Q_j(s, a) − r − γ (1 − d) V(s'))²
    actor: −mean min(exp(β u), 100) · log π(a | s)

In the authors' order: values, actor, critics. Locomotion's τ = 0.7 and β = 3; ``antmaze``: 0.9 and 10, rewards less 1.
The actor is a Gaussian around a tanh mean with deviations that don't depend on the state, its rate decays as a cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from policyopt.learners.acting import Agent, network
from policyopt.learners.data import ScaledReward
from policyopt.learners.off_policy import Critic, OffPolicy, Round, Update
from policyopt.learners.update import Adam, Cosine
from policyopt.models.bounded_actors import BoundedGaussian, GaussianInBox
from policyopt.models.state_value import StateValues
from policyopt.types import Loss, Transitions

FAMILY = "baselines"
VARIANTS = ("antmaze",)


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """The mean of |τ − 1{u < 0}| u² for u [N]."""
    return (torch.where(difference < 0.0, 1.0 - expectile, expectile) * difference.square()).mean()


def advantage_weights(advantage: Tensor, inverse_temperature: float, cap: float) -> Tensor:
    """min(exp(β A), cap), [N], without gradient."""
    return (inverse_temperature * advantage.detach()).exp().clamp(max=cap)


@torch.no_grad()
def data_values(agent: Agent, batch: Transitions) -> Tensor:
    """min_j Q̄_j(s, a) of the data's actions, [N]."""
    values: Tensor = agent["target"](batch.observation, batch.action)
    return values.amin(0)


@dataclass(frozen=True, kw_only=True)
class ExpectileValue(Update):
    """V(s) towards an expectile of the data's values."""

    trains: ClassVar[str] = "value"
    model: StateValues = StateValues()
    expectile: float = 0.7

    def __post_init__(self) -> None:
        if not 0.0 < self.expectile < 1.0:
            raise ValueError(f"an expectile lies between 0 and 1, got {self.expectile:g}")

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        return {"value": self.model.build(problem.spaces.observation, seed)}

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        value = agent["value"](batch.observation)
        loss = expectile_loss(data_values(agent, batch) - value, self.expectile)
        return Loss(loss, {"loss/expectile": loss.detach()})


@dataclass(frozen=True, kw_only=True)
class WeightedCloning(Update):
    """The actor towards the data's actions, the more the better they were."""

    trains: ClassVar[str] = "actor"
    optimizer: Adam = Adam(learning_rate=3e-4, gradient_clip=None, schedule=Cosine())
    model: GaussianInBox = GaussianInBox()
    inverse_temperature: float = 3.0
    cap: float = 100.0

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        return {"actor": self.model.build(problem.spaces.observation, problem.spaces.action, seed)}

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        with torch.no_grad():
            advantage = data_values(agent, batch) - agent["value"](batch.observation)
        actor = network(agent, "actor", BoundedGaussian)
        weights = advantage_weights(advantage, self.inverse_temperature, self.cap)
        loss = -(weights * actor.logp(batch.observation, batch.action)).mean()
        return Loss(loss, {"loss/policy": loss.detach(), "policy/weight": weights.mean()})


@dataclass(frozen=True, kw_only=True)
class ImplicitCritic(Critic):
    """Towards r + γ (1 − d) V(s')."""

    @torch.no_grad()
    def target(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Tensor:
        return batch.reward + self.gamma * (~batch.terminated) * agent["value"](batch.next_observation)


def method() -> OffPolicy:
    return OffPolicy(rounds=(Round(updates=(ExpectileValue(), WeightedCloning(), ImplicitCritic())),), collector=None)


def antmaze() -> OffPolicy:
    updates = (ExpectileValue(expectile=0.9), WeightedCloning(inverse_temperature=10.0), ImplicitCritic())
    return OffPolicy(rounds=(Round(updates=updates),), collector=None, rewards=ScaledReward(shift=-1.0))
