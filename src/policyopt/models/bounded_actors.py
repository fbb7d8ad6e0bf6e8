"""Actors whose mean lies in the box [−1, 1]^A by a tanh: deterministic, and with Gaussian noise around it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from policyopt.models.soft_actor import LOG_DEVIATION, multilayer_perceptron
from policyopt.types import Part


class BoundedActor(nn.Module):
    """Observation [N, S] → the action [N, A] in the box."""

    def __init__(self, layers: nn.Module, action_size: int) -> None:
        super().__init__()
        self.layers, self.action_size = layers, action_size

    def forward(self, observation: Tensor) -> Tensor:
        action: Tensor = self.layers(observation)
        return action.tanh()

    def mode(self, observation: Tensor) -> Tensor:
        """The action itself, [N, A]."""
        action: Tensor = self(observation)
        return action


class BoundedGaussian(BoundedActor):
    """A Gaussian around it, with a trained deviation for each action dimension that doesn't depend on the observation."""

    def __init__(self, layers: nn.Module, action_size: int) -> None:
        super().__init__(layers, action_size)
        self.log_deviation = nn.Parameter(torch.zeros(action_size))

    def logp(self, observation: Tensor, action: Tensor) -> Tensor:
        """The log-density [N] of actions [N, A]."""
        log_deviation = self.log_deviation.clamp(*LOG_DEVIATION)
        standard = (action - self(observation)) / log_deviation.exp()
        return (-0.5 * standard.square() - log_deviation - 0.5 * math.log(2.0 * math.pi)).sum(-1)

    def sample(self, observation: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions [N, A], clipped to the box, and the log-densities [N] before clipping."""
        mean = self(observation)
        log_deviation = self.log_deviation.clamp(*LOG_DEVIATION)
        noise = torch.randn(mean.shape, generator=rng)
        logp = (-0.5 * noise.square() - log_deviation - 0.5 * math.log(2.0 * math.pi)).sum(-1)
        return (mean + log_deviation.exp() * noise).clamp(-1.0, 1.0), logp


@dataclass(frozen=True, kw_only=True)
class Bounded(Part):
    """Builds the deterministic actor: ``layers`` hidden layers of ``width`` units. Raises ValueError where either isn't
    positive."""

    width: int = 256
    layers: int = 2
    activation: type[nn.Module] = nn.ReLU
    layer_norm: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.layers) < 1:
            raise ValueError(f"an actor needs positive sizes, got {self.width=}, {self.layers=}")

    def build(self, observation_size: int, action_size: int, seed: int) -> BoundedActor:
        sizes = (observation_size, *(self.width,) * self.layers, action_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.wrap(multilayer_perceptron(sizes, self.activation, self.layer_norm), action_size)

    def wrap(self, layers: nn.Module, action_size: int) -> BoundedActor:
        return BoundedActor(layers, action_size)


@dataclass(frozen=True, kw_only=True)
class GaussianInBox(Bounded):
    """Builds the Gaussian one."""

    def wrap(self, layers: nn.Module, action_size: int) -> BoundedActor:
        return BoundedGaussian(layers, action_size)
