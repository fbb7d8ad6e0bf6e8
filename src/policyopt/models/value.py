"""Value networks of control: one number a state, or one for each objective."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from policyopt.models.mlp import Perceptron, Standardization
from policyopt.types import Outputs, Rollouts


class ValueNetwork(Perceptron):
    """V(s), [N, T], or [N, T, K] where ``objectives`` is K > 0. ``standardization`` is the policy's, shared."""

    def __init__(
        self,
        observation: int,
        hidden: Sequence[int],
        objectives: int,
        rng: torch.Generator,
        standardization: Standardization | None = None,
    ) -> None:
        super().__init__((observation, *hidden, max(objectives, 1)), 1.0, rng, standardization)
        self.objectives = objectives

    def value(self, observations: Tensor) -> Tensor:
        out: Tensor = self(observations)
        return out if self.objectives else out.squeeze(-1)

    def evaluate(self, batch: Rollouts, want: Sequence[str] = ("value",)) -> Outputs:
        """Values of the states before each action, with gradient."""
        return Outputs(value=self.value(batch.observations))

    @torch.no_grad()
    def values(self, batch: Rollouts, limit: int) -> tuple[Tensor, Tensor]:
        """(value, next_value) of the states before and after each step; at a cut, of the state in which it was cut."""
        pieces = self.micro_batches(batch, limit)
        before, after = (
            torch.cat([self.value(observations[rows]) for rows in pieces])
            for observations in (batch.observations, batch.next_observations)
        )
        return before, after
