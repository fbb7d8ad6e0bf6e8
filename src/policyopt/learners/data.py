"""What is done to a data set before anything is learned from it, and to what the policy sees afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from policyopt.models.mlp import Standardization
from policyopt.types import Part, Transitions


@dataclass(frozen=True, kw_only=True)
class Standardize(Part):
    """Observations by the mean and the deviation + ``epsilon`` of the data set; the numbers are part of the agent."""

    epsilon: float = 1e-3

    def fit(self, observations: Tensor) -> Standardization:
        made = Standardization(observations.shape[-1], limit=math.inf)
        made.fit(observations, self.epsilon)
        return made


@dataclass(frozen=True, kw_only=True)
class ScaledReward(Part):
    """scale · r + shift in the place of the data set's rewards."""

    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Sampling(Part):
    """How often each row of a data set is drawn; here all alike."""

    def probabilities(self, data: Transitions) -> Tensor:
        """[N] float64, of sum 1. ``data`` have their rewards as they were logged."""
        return torch.full((len(data),), 1.0 / len(data), dtype=torch.float64)


class StandardizedPolicy:
    """A policy that sees observations as the data set's statistics standardize them."""

    def __init__(self, policy: Any, standardization: nn.Module) -> None:
        self.policy, self.standardization = policy, standardization

    def act(
        self, observation: Tensor, memory: Any, rng: torch.Generator, greedy: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Actions [N, A] for raw observations [N, S]."""
        acted: tuple[Tensor, dict[str, Tensor], Any] = self.policy.act(
            self.standardization(observation), memory, rng, greedy
        )
        return acted
