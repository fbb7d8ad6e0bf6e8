"""A2PR: the policy is pulled to whichever has the larger advantage, the data's action or a generated one (arXiv 2405.19909).

    V: mean (V(s) − min(y, y₂))²,   y: TD3's target, y₂: the same with the online critics
    VAE: mean over rows and dimensions of w₁ 1{Q_1(s, a) > V(s)} (ã − a)² + ½ KL: it knows the advantageous actions alone
    g = VAE(s, π(s));   A_g = Q_1(s, g) − V(s),   A_a = Q_1(s, a) − V(s);   target = g if A_g ≥ A_a else a
    actor: −(α / mean |Q_1|) mean Q_1(s, π(s)) + w₂ mean 1{A_g ≥ 0 or A_a > 0} (π(s) − target)²

As in the authors' code: two advantages of one sign count once; gradient flows through g into π; advantages are those
before V's step, which comes last here. Chosen: y and y₂ share noise that is drawn anew for V. Variants: ``prior``
(g from the clipped prior), ``detached`` (no gradient through g), ``data-only`` (target a where A_a > 0, no VAE),
``halfcheetah``, ``hopper``, ``walker2d`` (the authors' weights for the medium data sets).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from policyopt.learners.acting import Agent, network
from policyopt.learners.off_policy import DeterministicPolicy, OffPolicy, Round, SmoothedCritic, Update, first_values
from policyopt.learners.update import Adam
from policyopt.methods import td3_bc
from policyopt.models.action_vae import ActionAutoencoder, ActionVAE, latent_divergence
from policyopt.models.bounded_actors import Bounded
from policyopt.models.q_functions import QFunctions
from policyopt.models.state_value import StateValues
from policyopt.objectives.behaviour import BehaviourRegularizer, BehaviourTarget
from policyopt.types import Loss, Transitions

FAMILY = "offline"
VARIANTS = ("prior", "detached", "data-only", "halfcheetah", "hopper", "walker2d")


def advantageous(
    data: Tensor, generated: Tensor, data_advantage: Tensor, generated_advantage: Tensor
) -> tuple[Tensor, Tensor]:
    """Targets [N, A], the action of the larger advantage, and weights [N], 0 where neither is an advantage: actions [N, A],
    advantages [N]."""
    better = (generated_advantage >= data_advantage).unsqueeze(-1)
    weight = (generated_advantage >= 0.0) | (data_advantage > 0.0)
    return torch.where(better, generated, data), weight.to(data.dtype)


def reconstruction_loss(rebuilt: Tensor, action: Tensor, advantage: Tensor) -> Tensor:
    """The mean over rows and dimensions of 1{advantage > 0} (ã − a)²: [N, A] each, advantage [N]."""
    return ((advantage > 0.0).unsqueeze(-1) * (rebuilt - action).square()).mean()


@torch.no_grad()
def advantage(agent: Agent, observation: Tensor, action: Tensor) -> Tensor:
    """Q_1(s, a) − V(s), [N]."""
    value: Tensor = agent["value"](observation)
    return first_values(agent, observation, action) - value


@dataclass(frozen=True, kw_only=True)
class AdvantageGuided(BehaviourTarget):
    """The better of the data's action and the autoencoder's; ``prior``: from its prior, not from the policy's action."""

    prior: bool = False
    detached: bool = False

    def __call__(
        self, agent: nn.ModuleDict, batch: Transitions, action: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        seen, vae = batch.observation, network(agent, "vae", ActionVAE)
        generated = vae.sample(seen, rng) if self.prior else vae.reconstruct(seen, action, rng)[0]
        generated = generated.detach() if self.detached else generated
        advantages = (advantage(agent, seen, a) for a in (batch.action, generated))
        return advantageous(batch.action, generated, *advantages)


@dataclass(frozen=True, kw_only=True)
class AdvantageousData(BehaviourTarget):
    """The data's action where it is better than V(s), nothing elsewhere."""

    def __call__(
        self, agent: nn.ModuleDict, batch: Transitions, action: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        return batch.action, (advantage(agent, batch.observation, batch.action) > 0.0).to(action.dtype)


@dataclass(frozen=True, kw_only=True)
class AdvantageousActions(Update):
    """The autoencoder of the data's advantageous actions."""

    trains: ClassVar[str] = "vae"
    optimizer: Adam = Adam(learning_rate=1e-3, gradient_clip=None)
    model: ActionAutoencoder = ActionAutoencoder()
    weight: float = 1.0
    divergence: float = 0.5

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        return {"vae": self.model.build(problem.spaces.observation, problem.spaces.action, seed)}

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        seen, action = batch.observation, batch.action
        rebuilt, mean, deviation = network(agent, "vae", ActionVAE).reconstruct(seen, action, rng)
        error = self.weight * reconstruction_loss(rebuilt, action, advantage(agent, seen, action))
        loss = error + self.divergence * latent_divergence(mean, deviation)
        return Loss(loss, {"loss/reconstruction": error.detach()})


@dataclass(frozen=True, kw_only=True)
class PessimisticValue(Update):
    """V(s) towards the smaller of the targets of target and online critics; ``critic`` is whose target."""

    trains: ClassVar[str] = "value"
    model: StateValues = StateValues(layers=4)
    critic: SmoothedCritic = SmoothedCritic()

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        return {"value": self.model.build(problem.spaces.observation, seed)}

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        with torch.no_grad():
            following = batch.next_observation
            action = self.critic.next_action(agent, following, rng)
            values = torch.cat([agent[name](following, action) for name in ("target", "critic")]).amin(0)
            target = batch.reward + self.critic.gamma * (~batch.terminated) * values
        loss = (agent["value"](batch.observation) - target).square().mean()
        return Loss(loss, {"loss/state_value": loss.detach()})


def guided(target: BehaviourTarget, weight: float = 0.5, value_weight: float = 2.5) -> OffPolicy:
    """TD3 on the data with this target, w₂ and α; the paper's deeper networks."""
    critic = SmoothedCritic(model=QFunctions(layers=4))
    actor = DeterministicPolicy(
        model=Bounded(layers=3),
        value_weight=value_weight,
        regularizer=BehaviourRegularizer(target=target, weight=weight),
    )
    updates = (critic, AdvantageousActions(), actor, PessimisticValue())
    return replace(td3_bc.method(), rounds=(Round(updates=updates),))


def method() -> OffPolicy:
    return guided(AdvantageGuided())


def prior() -> OffPolicy:
    return guided(AdvantageGuided(prior=True))


def detached() -> OffPolicy:
    return guided(AdvantageGuided(detached=True))


def data_only() -> OffPolicy:
    base = guided(AdvantageousData())
    return replace(base, rounds=(Round(updates=tuple(u for u in base.updates() if u.trains != "vae")),))


def halfcheetah() -> OffPolicy:
    return guided(AdvantageGuided(), weight=1.0, value_weight=40.0)


def hopper() -> OffPolicy:
    critic = SmoothedCritic(model=QFunctions(layers=4), gamma=0.995)
    _, vae, actor, value = guided(AdvantageGuided(), weight=0.4).updates()
    value = PessimisticValue(critic=critic)
    return replace(method(), rounds=(Round(updates=(critic, vae, actor, value)),))


def walker2d() -> OffPolicy:
    critic, _, actor, value = guided(AdvantageGuided(), weight=1.0).updates()
    return replace(method(), rounds=(Round(updates=(critic, AdvantageousActions(weight=1.5), actor, value)),))
