"""MDPO: mirror descent, whose proximal term is minimised by several gradient steps on one objective (arXiv 2005.09814).

    θ_{k+1} ≈ argmax E[π_θ(a | s) / π_k(a | s) · A_k(s, a)] − (1 / t_k) E KL(π_θ(· | s) ‖ π_k(· | s))

On-policy (``method``; the paper's Eq. 9 and Algorithm 1): m = 10 steps of Adam on the whole batch, no clipping, no line
search. The divergence is of the NEW policy from the OLD one. Its gradient is zero at the first of the m steps, so that
m = 1 is the plain policy gradient. t_k falls from 1 to 0 over the budget, as the learning rate does.

Off-policy (``off``), with ã ~ π_θ reparametrized, c = 1 / t and log_q the Tsallis logarithm, q = 2 − ``tsallis``:

    Q_j: r + γ (1 − d) V̄(s');   V: min_j Q_j(s, ã) − λ log_q π_θ(ã | s)
    actor: c log_q π_θ(ã | s) + tsallis (λ − c) log_q π_old(ã | s) − Q_1(s, ã) + 10⁻³ (mean² + log deviation²)

π_old becomes π_θ after every m updates. At ``tsallis`` = 1, the logarithm, c = λ gives the actor of SAC.

Chosen where sources differ or are silent. The released loop acts by its mode, without noise; here the actor is sampled
(``acting=Exploring(noise=0.0)`` is theirs). On-policy ``tsallis`` ≠ 1 replaces the divergence by the mean of log_q π −
log_q π_old on the batch's actions, which can be negative; off-policy, log_q is taken of each action dimension and
summed. The value's clip stays at 0.2; theirs falls to zero. Eight environments gather the 2048 steps.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from policyopt.credit.returns import GeneralizedAdvantage
from policyopt.credit.scaling import RewardScaling, SingleSteps
from policyopt.learners.acting import Agent, network
from policyopt.learners.critic import Critic
from policyopt.learners.off_policy import Critic as ActionValues
from policyopt.learners.off_policy import OffPolicy, Round, Update, first_values, polyak, regression
from policyopt.learners.on_policy import OnPolicy, OnPolicyLearner
from policyopt.learners.update import Adam, Linear
from policyopt.models.control import MLP
from policyopt.models.soft_actor import SoftActor, TanhGaussian, tanh_gaussian_logp
from policyopt.models.state_value import StateValues
from policyopt.objectives.policy_gradient import log_ratio
from policyopt.rollouts.replay import Interaction
from policyopt.rollouts.vector import Vector
from policyopt.types import Budget, Loss, Rollouts, Transitions

FAMILY = "control"
VARIANTS = ("off",)

SMALLEST_STEP = 1e-3  # of t: a budget that is all but spent


def tsallis_log(logp: Tensor, q: float) -> Tensor:
    """log_q p = (p^(1−q) − 1) / (1 − q) from log p; the logarithm where q = 1."""
    return logp if q == 1.0 else torch.expm1((1.0 - q) * logp) / (1.0 - q)


# -- on-policy


@dataclass(frozen=True, kw_only=True)
class MirrorDescent(OnPolicy):
    """``steps`` on the whole batch towards the next policy; ``epochs`` and ``minibatches`` are the critic's, and
    ``objective`` has no part. Raises ValueError for settings that make no sense."""

    steps: int = 10
    tsallis: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or not self.tsallis > 0.0:
            raise ValueError(f"steps and tsallis must be positive, got {self.steps} and {self.tsallis:g}")

    def learner(self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None) -> MirrorLearner:
        return MirrorLearner(self, problem, policy, seed, budget)


class MirrorLearner(OnPolicyLearner):
    """On-policy mirror descent: all updates of a step are on one proximal objective."""

    method: MirrorDescent

    def step_size(self) -> float:
        """t_k = 1 − (k − 1) / N as the unspent share of the budget; 1 where there is none."""
        return max(1.0 - self.clock.share, SMALLEST_STEP)

    def divergence(self, logp: Tensor, present: Any, old: Any, batch: Rollouts) -> Tensor:
        """Of the present policy from the old one, [N, T]."""
        if self.method.tsallis == 1.0:
            return kl_divergence(present, old)
        q = 2.0 - self.method.tsallis
        return tsallis_log(logp, q) - tsallis_log(batch.behaviour_logp, q)

    def loss(self, old: Any, batch: Rollouts) -> tuple[Tensor, Tensor]:
        """(what to minimise, the mean divergence), with gradient."""
        present = self.policy.distribution(batch.observations)
        logp = present.log_prob(batch.actions)
        gain = (log_ratio(logp, batch).exp() * batch.advantage)[batch.mask].mean()
        divergence = self.divergence(logp, present, old, batch)[batch.mask].mean()
        return divergence / self.step_size() - gain, divergence

    def _improve(self, batches: dict[str, Any]) -> dict[str, Tensor | float]:
        batch: Rollouts = batches["rollouts"]
        with torch.no_grad():
            old = self.policy.distribution(batch.observations)
        for _ in range(self.method.steps):
            loss, _ = self.loss(old, batch)
            loss.backward()
            norm = self.optimizer.step(loss.detach(), self.clock)
        with torch.no_grad():
            loss, divergence = self.loss(old, batch)
        return {
            "loss/policy": loss,
            "policy/divergence": divergence,
            "gradient/norm": norm,
            "policy/t": self.step_size(),
        }


# -- off-policy


class OldActor(nn.Module):
    """A copy of an actor that is renewed after every ``every`` calls of ``follow``."""

    age: Tensor

    def __init__(self, actor: SoftActor, every: int) -> None:
        super().__init__()
        self.actor, self.every = deepcopy(actor).requires_grad_(False), every
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def follow(self, actor: nn.Module) -> None:
        self.age += 1
        if int(self.age) % self.every == 0:
            self.actor.load_state_dict(actor.state_dict())


def mirror_loss(
    logp: Tensor, old_logp: Tensor, value: Tensor, entropy_weight: float, divergence_weight: float, tsallis: float = 1.0
) -> Tensor:
    """c log_q π + tsallis (λ − c) log_q π_old − Q, [N], with λ the entropy's weight, c the divergence's and q = 2 − tsallis;
    log π and log π_old are those of each number of the action, [N, A]."""
    present, old = (tsallis_log(each, 2.0 - tsallis).sum(-1) for each in (logp, old_logp))
    return divergence_weight * present + tsallis * (entropy_weight - divergence_weight) * old - value


def sampled(actor: SoftActor, observation: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Unsquashed actions, reparametrized, with the mean and the log deviation that they come from; all [N, A]."""
    mean, log_deviation = actor(observation)
    return mean + log_deviation.exp() * torch.randn(mean.shape, generator=rng), mean, log_deviation


@dataclass(frozen=True, kw_only=True)
class MirrorPolicy(Update):
    """The actor towards high first values, near the old actor and with entropy.

    steps: m, the updates between two old actors; divergence_weight: c = 1 / t; penalty: on squared means and log
    deviations. Raises ValueError for settings that make no sense.
    """

    trains: ClassVar[str] = "actor"
    model: TanhGaussian = TanhGaussian()
    steps: int = 1000
    entropy_weight: float = 0.2
    divergence_weight: float = 1.0
    tsallis: float = 1.0
    penalty: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 1 or not (self.divergence_weight > 0.0 and self.tsallis > 0.0):
            raise ValueError(
                "steps, divergence_weight and tsallis must be positive, got "
                f"{self.steps}, {self.divergence_weight:g} and {self.tsallis:g}"
            )
        if self.entropy_weight < 0.0 or self.penalty < 0.0:
            raise ValueError(f"weights must not be negative, got {self.entropy_weight=:g} and {self.penalty=:g}")

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        actor = self.model.build(problem.spaces.observation, problem.spaces.action, seed)
        return {"actor": actor, "old_actor": OldActor(actor, self.steps)}

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        u, mean, log_deviation = sampled(network(agent, "actor", SoftActor), batch.observation, rng)
        logp = tanh_gaussian_logp(u, mean, log_deviation)
        old_logp = tanh_gaussian_logp(u, *network(agent, "old_actor", OldActor).actor(batch.observation))
        value = first_values(agent, batch.observation, u.tanh())
        each = mirror_loss(logp, old_logp, value, self.entropy_weight, self.divergence_weight, self.tsallis)
        loss = each.mean() + self.penalty * (mean.square().mean() + log_deviation.square().mean())
        divergence = (logp - old_logp).detach().sum(-1).mean()
        entropy = -logp.detach().sum(-1).mean()
        return Loss(loss, {"loss/policy": loss.detach(), "policy/entropy": entropy, "policy/divergence": divergence})

    def finish(self, agent: Agent) -> None:
        network(agent, "old_actor", OldActor).follow(network(agent, "actor", SoftActor))


@dataclass(frozen=True, kw_only=True)
class SoftValue(Update):
    """V(s) towards the least value of the actor's action, plus entropy; its target follows slowly."""

    trains: ClassVar[str] = "value"
    model: StateValues = StateValues()
    entropy_weight: float = 0.2
    tsallis: float = 1.0
    polyak: float = 0.005

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        value = self.model.build(problem.spaces.observation, seed)
        return {"value": value, "value_target": deepcopy(value).requires_grad_(False)}

    @torch.no_grad()
    def target(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Tensor:
        """What the values should be, [N]."""
        u, mean, log_deviation = sampled(network(agent, "actor", SoftActor), batch.observation, rng)
        logp = tsallis_log(tanh_gaussian_logp(u, mean, log_deviation), 2.0 - self.tsallis).sum(-1)
        least: Tensor = agent["critic"](batch.observation, u.tanh()).amin(0)
        return least - self.entropy_weight * logp

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        loss = regression(agent["value"](batch.observation)[None], self.target(agent, batch, rng))
        return Loss(loss, {"loss/state_value": loss.detach()})

    def finish(self, agent: Agent) -> None:
        polyak(agent["value_target"], agent["value"], self.polyak)


@dataclass(frozen=True, kw_only=True)
class BootstrappedCritic(ActionValues):
    """Twin Q-functions towards r + γ (1 − d) V̄(s'), without a target of their own."""

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        return {"critic": self.model.build(problem.spaces.observation, problem.spaces.action, seed)}

    @torch.no_grad()
    def target(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Tensor:
        return batch.reward + self.gamma * (~batch.terminated) * agent["value_target"](batch.next_observation)

    def finish(self, agent: Agent) -> None:
        """Nothing: V has the target."""


# -- the methods


def method() -> MirrorDescent:
    adam = Adam(learning_rate=3e-4, schedule=Linear(), gradient_clip=0.5, epsilon=1e-5)
    return MirrorDescent(
        policy=MLP(hidden=(64, 64), standardize=True),
        collector=Vector(environments=8, steps=256, gamma=0.99),
        critic=Critic(optimizer=adam, clip=0.2),
        credit=(RewardScaling(), GeneralizedAdvantage(lam=0.95), SingleSteps()),
        optimizer=adam,
        epochs=5,
        minibatches=16,
    )


def off() -> OffPolicy:
    """The published example's settings (Walker2d)."""
    updates = (MirrorPolicy(), BootstrappedCritic(), SoftValue())
    return OffPolicy(rounds=(Round(updates=updates),), collector=Interaction(warm_up=10_000))
