"""A policy over a fixed set of discrete actions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from policyopt.models.mlp import PerceptronPolicy


class CategoricalPolicy(PerceptronPolicy):
    """π(a | s) = softmax(outputs)[a]; ``outputs`` of the constructor is the number of actions."""

    def sample(self, outputs: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        if rng is None:
            actions = outputs.argmax(-1)
        else:
            probability = outputs.softmax(-1).to(rng.device)
            actions = torch.multinomial(probability, 1, generator=rng)[:, 0].to(outputs.device)
        return actions, *self.logp_entropy(outputs, actions)

    def logp_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        logp = outputs.log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(-1, actions[..., None])[..., 0], entropy

    def distribution(self, observations: Tensor) -> Distribution:
        return Categorical(logits=self(observations), validate_args=False)
