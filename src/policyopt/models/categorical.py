"""A policy over a fixed set of discrete actions."""

from __future__ import annotations

import torch
from torch import Tensor

from policyopt.models.mlp import PerceptronPolicy


class CategoricalPolicy(PerceptronPolicy):
    """π(a | s) = softmax(outputs)[a]; ``outputs`` of the constructor is the number of actions."""

    def sample(self, outputs: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        actions = outputs.argmax(-1) if rng is None else self.draw(outputs, rng)
        return actions, *self.logp_entropy(outputs, actions)

    def draw(self, outputs: Tensor, rng: torch.Generator) -> Tensor:
        """The first of exponential clocks whose rates are the probabilities."""
        clocks = torch.empty(outputs.shape, device=rng.device).exponential_(generator=rng).to(outputs.device)
        return (outputs - clocks.log_()).argmax(-1)

    def logp(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return outputs.log_softmax(-1).gather(-1, actions[..., None])[..., 0]

    def logp_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        logp = outputs.log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(-1, actions[..., None])[..., 0], entropy
