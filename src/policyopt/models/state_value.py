"""Values of states for learning from transitions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from policyopt.models.soft_actor import multilayer_perceptron
from policyopt.types import Part


class StateValue(nn.Module):
    """Observation [N, S] → value [N]."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, observation: Tensor) -> Tensor:
        value: Tensor = self.layers(observation)
        return value.squeeze(-1)


@dataclass(frozen=True, kw_only=True)
class StateValues(Part):
    """Builds one: ``layers`` hidden layers of ``width`` units. Raises ValueError where either isn't positive."""

    width: int = 256
    layers: int = 2
    activation: type[nn.Module] = nn.ReLU

    def __post_init__(self) -> None:
        if min(self.width, self.layers) < 1:
            raise ValueError(f"a value network needs positive sizes, got {self.width=}, {self.layers=}")

    def build(self, observation_size: int, seed: int) -> StateValue:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = (observation_size, *(self.width,) * self.layers, 1)
            return StateValue(multilayer_perceptron(sizes, self.activation, False))
