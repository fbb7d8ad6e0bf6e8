"""PMOE: a mixture of Gaussian experts whose weights learn how often each expert is the best (arXiv 2104.09122).

    π(a | s) = Σ_k w_k(s) N(a; mean_k(s), diag deviation_k(s)²),   w = softmax(gate(s))

Every expert proposes an action a_k, and the critic says which is best, k* = argmax_k Q(s, a_k). The weights are drawn to
that choice, which carries no gradient, by the frequency loss

    mean over states and experts of (w_k(s) − 1{k = k*})²

so that w_k becomes the probability that expert k is best. SAC (``method``): log-densities are those of the chosen expert
alone, with no part of its weight. With Q = min_j Q_j,

    critics: r + γ (1 − d) (min_j Q̄_j(s', a'_k) − α log π_k(a'_k | s')),   k ~ w(s')
    actor: α log π_{k*}(a_{k*} | s) − Q(s, a_{k*}) + the frequency loss;   temperature: by log π_{k*}

so that only the best expert of a state has a policy gradient. PPO (``ppo``): its loss with the whole mixture's
log-probabilities, which reaches the weights too, plus the frequency loss by a Q(s, a) that is fitted to the returns.

``gumbel`` and ``score-ratio`` are the estimators that the paper compares with, for the choice k ~ w: a straight-through
Gumbel-softmax, and −log w_k (Q(s, a_k) − Σ_i w_i Q(s, a_i)) for the weights. Their exact form is our choice. So is the
greedy action, the mean of the expert with the largest weight (the authors' code samples the expert), and the mean over K
in the frequency loss, as in that code. Rates, batch and the number of experts are that code's, the networks SAC's and
PPO's own; its rewards scaled by each batch are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from policyopt.learners.acting import Agent, network
from policyopt.learners.off_policy import (
    LogTemperature,
    OffPolicy,
    Round,
    SoftCritic,
    SoftPolicy,
    Temperature,
    temperature_loss,
)
from policyopt.learners.on_policy import OnPolicy, OnPolicyLearner
from policyopt.learners.update import Adam
from policyopt.methods import ppo as proximal
from policyopt.models.mixture import GaussianMixturePolicy, MixtureActor, MixtureMLP, TanhMixture, of_expert
from policyopt.models.q_functions import QEnsemble, QFunctions
from policyopt.types import Budget, Loss, Part, Rollouts, Transitions, generator

FAMILY = "control"
VARIANTS = ("ppo", "gumbel", "score-ratio")


def frequency_loss(weights: Tensor, best: Tensor) -> Tensor:
    """The mean over rows and experts of (w_k − 1{k = best})²: weights [N, K], best [N]."""
    return (weights - functional.one_hot(best, weights.shape[-1])).square().mean()


# -- on SAC


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """What the experts would do in N states: actions [N, K, A] and log-densities [N, K] with gradient, the logits of
    their weights [N, K], and who judges them."""

    observation: Tensor
    actions: Tensor
    logp: Tensor
    logits: Tensor
    critic: QEnsemble

    def values(self) -> Tensor:
        """The least values [N, K], with gradient through the actions."""
        return self.critic.many(self.observation, self.actions).amin(0)


def proposals(agent: Agent, observation: Tensor, rng: torch.Generator) -> Proposals:
    """One action of every expert in each state of observation [N, S]."""
    actor, critic = network(agent, "actor", MixtureActor), network(agent, "critic", QEnsemble)
    actions, logp = actor.propose(observation, rng)
    return Proposals(observation=observation, actions=actions, logp=logp, logits=actor.gate(observation), critic=critic)


@dataclass(frozen=True, kw_only=True)
class Gating(Part):
    """How the choice of an expert is learned."""

    def __call__(self, made: Proposals, temperature: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """→ (the actor's loss, the log-densities [N] of what was chosen)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Frequency(Gating):
    """The best expert is improved, and the weights learn how often each is the best."""

    def __call__(self, made: Proposals, temperature: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        values = made.values()
        best = values.argmax(-1)
        logp = of_expert(made.logp, best)
        policy = (temperature * logp - of_expert(values, best)).mean()
        return policy + frequency_loss(made.logits.softmax(-1), best), logp


@dataclass(frozen=True, kw_only=True)
class GumbelSoftmax(Gating):
    """One gradient for experts and weights, through a relaxed choice g: a = Σ_k g_k a_k, log π = Σ_k g_k log π_k.

    ``straight_through``: the choice itself is of one expert, its gradient the relaxed one's. Raises ValueError for a
    softness that isn't positive.
    """

    softness: float = 1.0
    straight_through: bool = True

    def __post_init__(self) -> None:
        if not self.softness > 0.0:
            raise ValueError(f"softness must be positive, got {self.softness:g}")

    def __call__(self, made: Proposals, temperature: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = -torch.empty_like(made.logits).exponential_(generator=rng).log()
        choice = ((made.logits.log_softmax(-1) + noise) / self.softness).softmax(-1)
        if self.straight_through:
            choice = functional.one_hot(choice.argmax(-1), choice.shape[-1]) + (choice - choice.detach())
        action, logp = (choice.unsqueeze(-1) * made.actions).sum(-2), (choice * made.logp).sum(-1)
        values: Tensor = made.critic(made.observation, action)
        return (temperature * logp - values.amin(0)).mean(), logp


@dataclass(frozen=True, kw_only=True)
class ScoreRatio(Gating):
    """A sampled expert is improved, and the weights follow the score function of the choice (REINFORCE), with the
    weights' mean value as baseline."""

    def __call__(self, made: Proposals, temperature: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        values, log_weights = made.values(), made.logits.log_softmax(-1)
        weights = log_weights.detach().exp()
        chosen = torch.multinomial(weights, 1, generator=rng)[:, 0]
        logp, value = of_expert(made.logp, chosen), of_expert(values, chosen)
        gain = (value - (weights * values).sum(-1)).detach()
        return (temperature * logp - value - of_expert(log_weights, chosen) * gain).mean(), logp


@dataclass(frozen=True, kw_only=True)
class MixturePolicy(SoftPolicy):
    """The experts and the weights of their mixture."""

    model: TanhMixture = TanhMixture()
    gating: Gating = Frequency()

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        made = proposals(agent, batch.observation, rng)
        loss, logp = self.gating(made, agent["temperature"]().detach(), rng)
        log_weights = made.logits.detach().log_softmax(-1)
        spread = -(log_weights.exp() * log_weights).sum(-1).mean()
        entropy = -logp.detach().mean()
        return Loss(loss, {"loss/policy": loss.detach(), "policy/entropy": entropy, "policy/gate_entropy": spread})


@dataclass(frozen=True, kw_only=True)
class BestTemperature(Temperature):
    """The temperature that keeps the entropy of the best expert at its target."""

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        with torch.no_grad():
            made = proposals(agent, batch.observation, rng)
            logp = of_expert(made.logp, made.values().argmax(-1))
        wanted = -float(batch.action.shape[-1]) if self.target_entropy is None else self.target_entropy
        temperature = network(agent, "temperature", LogTemperature)
        return Loss(temperature_loss(temperature.log, logp, wanted), {"policy/temperature": temperature().detach()})


def on_sac(gating: Gating, experts: int = 2) -> OffPolicy:
    """SAC with a mixture. The temperature follows the best expert where that is the one that is improved, and the sampled
    one elsewhere."""
    temperature = BestTemperature() if isinstance(gating, Frequency) else Temperature()
    updates = (SoftCritic(polyak=0.01), MixturePolicy(model=TanhMixture(experts=experts), gating=gating), temperature)
    return OffPolicy(rounds=(Round(updates=updates),), batch=300)


# -- on PPO


@dataclass(frozen=True, kw_only=True)
class ExpertsOnPolicy(OnPolicy):
    """``action_values`` judge the experts; they learn the returns of what was done, with an optimizer of their own."""

    action_values: QFunctions = QFunctions(heads=1, width=64)
    values_optimizer: Adam = Adam(learning_rate=3e-4, gradient_clip=0.5)

    def learner(self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None) -> ExpertsLearner:
        return ExpertsLearner(self, problem, policy, seed, budget)


class ExpertsLearner(OnPolicyLearner):
    """``OnPolicyLearner`` whose updates add the frequency loss, and fit the action values."""

    method: ExpertsOnPolicy
    policy: GaussianMixturePolicy

    def __init__(self, method: ExpertsOnPolicy, problem: Any, policy: Any, seed: int, budget: Budget | None) -> None:
        super().__init__(method, problem, policy, seed, budget)
        draw = int(torch.randint(2**62, (), generator=generator(seed, "action values")))
        self.values = method.action_values.build(self.policy.observation, self.policy.action_size, draw)
        self.values_optimizer = method.values_optimizer.build(self.values.parameters())

    def best(self, batch: Rollouts, rng: torch.Generator) -> Tensor:
        """The best expert [B] in each of the batch's states, by one action of each."""
        with torch.no_grad():
            _, mean, log_deviation = self.policy.split(self.policy(batch.observations).flatten(0, 1))
            actions = mean + log_deviation.exp() * torch.randn(mean.shape, generator=rng)
            return self.values.many(self._seen(batch), actions)[0].argmax(-1)

    def _seen(self, batch: Rollouts) -> Tensor:
        """Observations [B, S] as the policy sees them."""
        seen = batch.observations.flatten(0, 1)
        return seen if self.policy.standardization is None else self.policy.standardization(seen)

    def _update(self, pieces: dict[str, Any], number: str) -> dict[str, Tensor | float]:
        objective, batch = self.method.objective, self.method.objective.prepare(pieces["rollouts"])
        loss = objective(self.policy.evaluate(batch, objective.want()), batch)
        best = self.best(batch, self.clock.generator(f"experts-{number}"))
        logits, _, _ = self.policy.split(self.policy(batch.observations).flatten(0, 1))
        frequency = frequency_loss(logits.softmax(-1), best)
        total = loss.value + frequency
        total.backward()
        metrics = {**loss.metrics, "loss/frequency": frequency.detach()}
        metrics["gradient/norm"] = self.optimizer.step(total.detach(), self.clock)
        values = self.values(self._seen(batch), batch.actions.flatten(0, 1))[0]
        error = (values - batch.returns.flatten()).square().mean()
        error.backward()
        self.values_optimizer.step(error.detach(), self.clock)
        return {**metrics, "loss/action_value": error.detach()}

    def state_dict(self) -> dict[str, Any]:
        own = {"values": self.values.state_dict(), "values_optimizer": self.values_optimizer.state_dict()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.values.load_state_dict(state["values"])
        self.values_optimizer.load_state_dict(state["values_optimizer"])


# -- the methods


def method() -> OffPolicy:
    return on_sac(Frequency())


def gumbel() -> OffPolicy:
    return on_sac(GumbelSoftmax())


def score_ratio() -> OffPolicy:
    return on_sac(ScoreRatio())


def ppo() -> ExpertsOnPolicy:
    base = proximal.control()
    fields = {name: getattr(base, name) for name in OnPolicy.__dataclass_fields__}
    return ExpertsOnPolicy(**{**fields, "policy": MixtureMLP()})
