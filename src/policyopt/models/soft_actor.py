"""The tanh-Gaussian actor of soft actor-critic: a Gaussian squashed into the box [−1, 1]^A (arXiv 1812.05905)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from policyopt.models.layers import Layers
from policyopt.types import Part

LOG_DEVIATION = (-5.0, 2.0)


def tanh_gaussian(mean: Tensor, log_deviation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The action tanh(u), u = mean + deviation · noise, [N, A], and its log-density [N] in the box.

    log π = Σ log N(u) − log(1 − tanh² u), the second in a form that stays finite where tanh saturates.
    """
    u = mean + log_deviation.exp() * noise
    gaussian = -0.5 * noise.square() - log_deviation - 0.5 * math.log(2.0 * math.pi)
    return u.tanh(), (gaussian - log_squash(u)).sum(-1)


def tanh_gaussian_logp(u: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """The log-density of each number of the action tanh(u) by itself, all [N, A]; their sum is the action's."""
    standard = (u - mean) * (-log_deviation).exp()
    return -0.5 * standard.square() - log_deviation - 0.5 * math.log(2.0 * math.pi) - log_squash(u)


def log_squash(u: Tensor) -> Tensor:
    """log(1 − tanh² u)."""
    return 2.0 * (math.log(2.0) - u - functional.softplus(-2.0 * u))


def multilayer_perceptron(sizes: Sequence[int], activation: Callable[[], nn.Module], layer_norm: bool) -> Layers:
    """Linear layers of these sizes, each but the last followed by layer normalization (where asked) and activation."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs), *([nn.LayerNorm(outputs)] if layer_norm else []), activation()]
    return Layers(*layers, nn.Linear(sizes[-2], sizes[-1]))


class SoftActor(nn.Module):
    """Observation [N, S] → mean and logarithm of the deviation [N, A], which is kept within ``LOG_DEVIATION``."""

    def __init__(self, layers: nn.Module, action_size: int) -> None:
        super().__init__()
        self.layers, self.action_size = layers, action_size

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.layers(observation).chunk(2, -1)
        low, high = LOG_DEVIATION
        return mean, low + 0.5 * (high - low) * (raw.tanh() + 1.0)

    def sample(self, observation: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions [N, A], reparametrized, and their log-densities [N]."""
        mean, log_deviation = self(observation)
        return tanh_gaussian(mean, log_deviation, torch.randn(mean.shape, generator=rng))

    def mode(self, observation: Tensor) -> Tensor:
        """The squashed mean [N, A]."""
        mean, _ = self(observation)
        return torch.as_tensor(mean).tanh()


@dataclass(frozen=True, kw_only=True)
class TanhGaussian(Part):
    """Builds the actor: ``layers`` hidden layers of ``width`` units. Raises ValueError where either isn't positive."""

    width: int = 256
    layers: int = 2
    activation: type[nn.Module] = nn.ReLU
    layer_norm: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.layers) < 1:
            raise ValueError(f"an actor needs positive sizes, got {self.width=}, {self.layers=}")

    def build(self, observation_size: int, action_size: int, seed: int) -> SoftActor:
        sizes = (observation_size, *(self.width,) * self.layers, 2 * action_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SoftActor(multilayer_perceptron(sizes, self.activation, self.layer_norm), action_size)
