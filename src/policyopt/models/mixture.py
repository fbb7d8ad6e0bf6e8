"""Gaussian mixtures as policies: K experts on one trunk, and weights that depend on the state (arXiv 2104.09122)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from policyopt.models.gaussian import HALF_LOG_TWO_PI
from policyopt.models.mlp import Architecture, PerceptronPolicy
from policyopt.models.soft_actor import SoftActor, TanhGaussian, multilayer_perceptron, tanh_gaussian
from policyopt.types import generator

LOG_DEVIATION = (-20.0, 2.0)  # of experts that aren't squashed


def mixture_logp(logits: Tensor, mean: Tensor, log_deviation: Tensor, action: Tensor) -> Tensor:
    """log Σ_k w_k N(a; mean_k, diag deviation_k²) […] of actions […, A]: w = softmax(logits) […, K], the experts' means
    and log deviations […, K, A]."""
    standard = (action.unsqueeze(-2) - mean) * (-log_deviation).exp()
    each = -(0.5 * standard.square() + log_deviation + HALF_LOG_TWO_PI).sum(-1)
    return (logits.log_softmax(-1) + each).logsumexp(-1)


def of_expert(columns: Tensor, expert: Tensor) -> Tensor:
    """columns [N, K] or [N, K, A] and one expert's number a row [N] → [N] or [N, A]."""
    return columns[torch.arange(len(expert), device=expert.device), expert]


class MixtureActor(SoftActor):
    """Tanh-Gaussian experts on a shared trunk. ``gate`` gives the logits of their weights, from the observation alone.

    A log-density is that of the expert that was chosen; it has no part of its weight.
    """

    def __init__(self, layers: nn.Module, gate: nn.Module, experts: int, action_size: int) -> None:
        super().__init__(layers, action_size)
        self.gate, self.experts = gate, experts

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log deviations [N, K, A]."""
        mean, log_deviation = super().forward(observation)
        shape = (len(observation), self.experts, self.action_size)
        return mean.view(shape), log_deviation.view(shape)

    def propose(self, observation: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """An action of every expert [N, K, A], reparametrized, and their log-densities [N, K]."""
        mean, log_deviation = self(observation)
        return tanh_gaussian(mean, log_deviation, torch.randn(mean.shape, generator=rng))

    def sample(self, observation: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        actions, logp = self.propose(observation, rng)
        expert = torch.multinomial(self.gate(observation).softmax(-1), 1, generator=rng)[:, 0]
        return of_expert(actions, expert), of_expert(logp, expert)

    def mode(self, observation: Tensor) -> Tensor:
        """The squashed mean of the expert with the largest weight, [N, A]."""
        mean, _ = self(observation)
        return of_expert(mean, self.gate(observation).argmax(-1)).tanh()


@dataclass(frozen=True, kw_only=True)
class TanhMixture(TanhGaussian):
    """Builds the actor with ``experts``; ``gate`` are the hidden layers of the mixing head, which is linear without any."""

    experts: int = 2
    gate: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.experts, *self.gate, 1) < 1:
            raise ValueError(f"a mixture needs positive numbers, got {self.experts=}, {self.gate=}")

    def build(self, observation_size: int, action_size: int, seed: int) -> MixtureActor:
        trunk = super().build(observation_size, self.experts * action_size, seed).layers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            gate = multilayer_perceptron((observation_size, *self.gate, self.experts), self.activation, False)
        return MixtureActor(trunk, gate, self.experts, action_size)


class GaussianMixturePolicy(PerceptronPolicy):
    """π(a | s) = Σ_k w_k(s) N(a; mean_k(s), diag deviation_k(s)²) on actions [.., A], which aren't bounded here.

    Log-probabilities are the whole mixture's. Its entropy has no closed form: −log π of the action is an estimate of it.
    """

    def __init__(
        self,
        observation: int,
        action: int,
        hidden: Sequence[int],
        rng: torch.Generator,
        *,
        experts: int,
        standardize: bool = False,
    ) -> None:
        super().__init__(observation, 2 * experts * action, hidden, rng, standardize=standardize)
        self.experts, self.action_size = experts, action
        self.gate = nn.Linear(observation, experts)
        nn.init.zeros_(self.gate.weight), nn.init.zeros_(self.gate.bias)

    def forward(self, observations: Tensor) -> Tensor:
        """[…, 2KA + K]: the experts' means and log deviations, and the logits of their weights."""
        x = observations if self.standardization is None else self.standardization(observations)
        return torch.cat((self.network(x), self.gate(x)), -1)

    def split(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """→ logits […, K], means and log deviations […, K, A]."""
        size = self.experts * self.action_size
        mean, log_deviation, logits = outputs.split((size, size, self.experts), -1)
        shape = (*outputs.shape[:-1], self.experts, self.action_size)
        return logits, mean.reshape(shape), log_deviation.reshape(shape).clamp(*LOG_DEVIATION)

    def sample(self, outputs: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        logits, mean, log_deviation = self.split(outputs)
        if rng is None:
            actions = of_expert(mean, logits.argmax(-1))
        else:
            expert = torch.multinomial(logits.softmax(-1), 1, generator=rng)[:, 0]
            noise = torch.randn(len(mean), self.action_size, generator=rng)
            actions = of_expert(mean, expert) + of_expert(log_deviation, expert).exp() * noise
        return actions, *self.logp_entropy(outputs, actions)

    def logp_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        logp = mixture_logp(*self.split(outputs), actions)
        return logp, -logp


@dataclass(frozen=True, kw_only=True)
class MixtureMLP(Architecture):
    """Hidden layers of policy and critic, the number of experts, and whether observations are standardized."""

    hidden: tuple[int, ...] = (64, 64)
    experts: int = 5
    standardize: bool = True

    def build(self, problem: Any, seed: int) -> GaussianMixturePolicy:
        """Raises ValueError for a problem without continuous actions, or with several objectives."""
        spaces = getattr(problem, "spaces", None)
        if spaces is None or spaces.discrete or spaces.objectives:
            raise ValueError(
                f"{getattr(problem, 'name', problem)!r} does not fit: a Gaussian mixture needs a control problem with "
                "continuous actions and one reward, such as multi-goal or gym:Pendulum-v1"
            )
        return GaussianMixturePolicy(
            spaces.observation,
            spaces.action,
            self.hidden,
            generator(seed, "policy"),
            experts=self.experts,
            standardize=self.standardize,
        )
