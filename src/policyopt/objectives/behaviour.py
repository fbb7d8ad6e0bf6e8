"""Staying near the data: one regularizer whose methods differ in the action that they pull the policy towards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from policyopt.types import Part, Transitions


def value_scale(values: Tensor, weight: float) -> Tensor:
    """λ = weight / mean |Q| without gradient, for values [N] of the policy's actions (TD3+BC, arXiv 2106.06860)."""
    return weight / values.detach().abs().mean()


def behaviour_distance(action: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean over rows and action dimensions of weight · (action − target)²: [N, A] each, weight [N]."""
    squared = (action - target).square()
    return squared.mean() if weight is None else (weight.unsqueeze(-1) * squared).mean()


@dataclass(frozen=True, kw_only=True)
class BehaviourTarget(Part):
    """Which action the policy is pulled towards, and in which states."""

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        """Networks that it adds to the agent and that nobody trains."""
        return {}

    def prepare(self, agent: nn.ModuleDict, data: Transitions) -> None:
        """What it takes from the data set, once."""

    def __call__(
        self, agent: nn.ModuleDict, batch: Transitions, action: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """For the policy's actions [N, A]: targets [N, A], and weights [N] (None: 1 in every state)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DataAction(BehaviourTarget):
    """The action that the data set has in this state."""

    def __call__(
        self, agent: nn.ModuleDict, batch: Transitions, action: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        return batch.action, None


@dataclass(frozen=True, kw_only=True)
class BehaviourRegularizer(Part):
    """``weight`` times the squared distance to the target. Raises ValueError for a negative weight."""

    target: BehaviourTarget = DataAction()
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0.0:
            raise ValueError(f"the regularizer's weight must not be negative, got {self.weight:g}")

    def __call__(self, agent: nn.ModuleDict, batch: Transitions, action: Tensor, rng: torch.Generator) -> Tensor:
        target, weight = self.target(agent, batch, action, rng)
        return self.weight * behaviour_distance(action, target, weight)
