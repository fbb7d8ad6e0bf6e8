"""DSRL: steers a frozen diffusion or flow policy by learning which noise to start its sampler from (arXiv 2506.15799).

With a deterministic sampler the policy is a map a = base(s, w) from noise to actions. It stays as it is, and w becomes
the action of soft actor-critic: w = b w', where w' ∈ [−1, 1]^A is the actor's. ``sac`` learns values of noise,
Q(s, w'), as if the base were part of the environment. The default, DSRL-NA, knows that much noise leads to the same
action: values of ACTIONS are learned, from data of any origin, and distilled into values of noise for the actor:

    y = r + γ (1 − d) (min_j Q̄_j(s', base(s', b w')) − α log π(w' | s')),   w' ~ π
    noise critic, head by head: ½ Σ_j (Q^W_j(s, w / b) − Q_j(s, base(s, w)))²,   w ~ N(0, I) and not clipped
    actor: E[α log π(w' | s) − min_j Q^W_j(s, w')]

Chosen where the paper is silent: log π is a density of w' in the box [−1, 1]^A, for which the target entropy 0 is meant
too; b scales the actor's noise in both variants. The base is a rectified flow, cloned first in a stage of its own.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from policyopt.learners.acting import Acting, Agent, network
from policyopt.learners.off_policy import (
    OffPolicy,
    Round,
    SoftCritic,
    SoftPolicy,
    Temperature,
    Update,
    regression,
)
from policyopt.learners.stages import Stage, Stages
from policyopt.methods import flow_bc
from policyopt.models.q_functions import QFunctions
from policyopt.models.soft_actor import SoftActor, TanhGaussian
from policyopt.rollouts.replay import Interaction
from policyopt.types import Budget, Loss, Transitions

FAMILY = "generative policies"
VARIANTS = ("sac",)


class Steerable(nn.Module):
    """A frozen policy with ``decode(observation, noise)``, driven by noise b w' with w' [N, A] in [−1, 1]^A."""

    def __init__(self, base: Any, bound: float) -> None:
        super().__init__()
        self.base, self.bound = base, bound

    @torch.no_grad()
    def forward(self, observation: Tensor, scaled: Tensor) -> Tensor:
        """The action [N, A]."""
        action: Tensor = self.base.decode(observation, self.bound * scaled)
        return action


class SteeredPolicy:
    """The actor chooses the noise, the base the action; ``warm_up`` is the base under its own Gaussian noise.

    ``remembers_noise``: what is remembered is w' in the place of the action, and warm-up noise is clipped to the box.
    """

    def __init__(self, base: Steerable, actor: SoftActor, remembers_noise: bool) -> None:
        self.base, self.actor, self.remembers_noise = base, actor, remembers_noise

    @torch.no_grad()
    def act(
        self, observation: Tensor, memory: Any, rng: torch.Generator, greedy: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Actions [N, A] for observations [N, S]."""
        scaled = self.actor.mode(observation) if greedy else self.actor.sample(observation, rng)[0]
        return self.base(observation, scaled), {"action": scaled} if self.remembers_noise else {}, memory

    def warm_up(self, observation: Tensor, memory: Any, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor], Any]:
        noise = torch.randn(len(observation), self.actor.action_size, generator=rng)
        if not self.remembers_noise:
            return self.base.base.decode(observation, noise), {}, memory
        scaled = (noise / self.base.bound).clamp(-1.0, 1.0)
        return self.base(observation, scaled), {"action": scaled}, memory


@dataclass(frozen=True, kw_only=True)
class Steering(Acting):
    """Acts through the base with noise within ± ``bound``. Raises ValueError for a bound that isn't positive."""

    bound: float = 1.5
    remembers_noise: bool = False

    def __post_init__(self) -> None:
        if not self.bound > 0.0:
            raise ValueError(f"the noise's bound must be positive, got {self.bound:g}")

    def modules(self, problem: Any, policy: Any) -> dict[str, nn.Module]:
        if not hasattr(policy, "decode"):
            raise ValueError(
                f"steering needs a base policy with decode(observation, noise), got {type(policy).__name__}: clone one "
                "from demonstrations first (`policyopt train flow-bc`)"
            )
        frozen = deepcopy(policy).requires_grad_(False) if isinstance(policy, nn.Module) else policy
        return {"base": Steerable(frozen, self.bound)}

    def policy(self, agent: Agent) -> SteeredPolicy:
        return SteeredPolicy(
            network(agent, "base", Steerable), network(agent, "actor", SoftActor), self.remembers_noise
        )


@dataclass(frozen=True, kw_only=True)
class SteeredCritic(SoftCritic):
    """Values of actions, under the noise that the actor would choose next."""

    def next_action(self, agent: Agent, observation: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        scaled, logp = super().next_action(agent, observation, rng)
        return network(agent, "base", Steerable)(observation, scaled), logp


@dataclass(frozen=True, kw_only=True)
class NoiseCritic(Update):
    """Values of noise, distilled from those of the actions that it leads to, over all noise that the base knows."""

    trains: ClassVar[str] = "noise_critic"
    model: QFunctions = QFunctions()

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        return {"noise_critic": self.model.build(problem.spaces.observation, problem.spaces.action, seed)}

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        steered, seen = network(agent, "base", Steerable), batch.observation
        scaled = torch.randn(len(seen), network(agent, "actor", SoftActor).action_size, generator=rng) / steered.bound
        with torch.no_grad():
            target = agent["critic"](seen, steered(seen, scaled))
        loss = regression(agent["noise_critic"](seen, scaled), target)
        return Loss(loss, {"loss/distillation": loss.detach()})


def networks(width: int, layers: int) -> tuple[QFunctions, TanhGaussian]:
    """Critics and actor with layer normalization and tanh, as recommended for many updates a step."""
    critic = QFunctions(width=width, layers=layers, activation=nn.Tanh, layer_norm=True)
    return critic, TanhGaussian(width=width, layers=layers, activation=nn.Tanh, layer_norm=True)


def on_actions(width: int = 2048, layers: int = 3, bound: float = 1.5) -> OffPolicy:
    """Steers the policy that it is given by values of actions: the noise-aliased variant."""
    critic, actor = networks(width, layers)
    updates = (
        Temperature(target_entropy=0.0),
        SteeredCritic(model=critic),
        SoftPolicy(model=actor, critic="noise_critic"),
    )
    return OffPolicy(
        rounds=(Round(updates=updates, repeat=20), Round(updates=(NoiseCritic(model=critic),), repeat=10)),
        acting=Steering(bound=bound),
        collector=Interaction(environments=4, warm_up=6000),
    )


def on_noise(width: int = 2048, layers: int = 3, bound: float = 1.5) -> OffPolicy:
    """Steers the policy that it is given by soft actor-critic on noise."""
    critic, actor = networks(width, layers)
    updates = (Temperature(target_entropy=0.0), SoftCritic(model=critic), SoftPolicy(model=actor))
    acting = Steering(bound=bound, remembers_noise=True)
    return replace(on_actions(), rounds=(Round(updates=updates, repeat=20),), acting=acting)


def after_cloning(steering: OffPolicy) -> Stages:
    """Clones the problem's demonstrations, then steers the clone."""
    cloning = Stage(name="cloning", method=flow_bc.method(), until=Budget(updates=3000))
    return Stages(stages=(cloning, Stage(name="steering", method=steering)))


def method() -> Stages:
    return after_cloning(on_actions())


def sac() -> Stages:
    return after_cloning(on_noise())
