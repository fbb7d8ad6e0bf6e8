"""A number for each choice in a state: values, or the logits of a policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from policyopt.models.soft_actor import multilayer_perceptron
from policyopt.types import Part


@dataclass(frozen=True, kw_only=True)
class Choices(Part):
    """Builds observations [N, S] → [N, A]: ``layers`` hidden layers of ``width`` units. Raises ValueError where either isn't
    positive."""

    width: int = 256
    layers: int = 3
    activation: type[nn.Module] = nn.SELU

    def __post_init__(self) -> None:
        if min(self.width, self.layers) < 1:
            raise ValueError(f"a network needs positive sizes, got {self.width=}, {self.layers=}")

    def build(self, observation_size: int, choices: int, seed: int) -> nn.Sequential:
        sizes = (observation_size, *(self.width,) * self.layers, choices)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return multilayer_perceptron(sizes, self.activation, False)
