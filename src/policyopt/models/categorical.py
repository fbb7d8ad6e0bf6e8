"""Policies over discrete actions: one choice, or several at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent

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
        return outputs.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)

    def logp_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        return categorical(outputs, actions)

    def distribution(self, observations: Tensor) -> Distribution:
        return Categorical(logits=self(observations), validate_args=False)


class MultiCategoricalPolicy(PerceptronPolicy):
    """π(a | s) = Π_m softmax(outputs of m)[a_m]: actions [.., A] of A choices, the m-th among ``choices[m]``.

    Log-probability and entropy are those of the whole action, the sums over its choices.
    """

    place: Tensor

    def __init__(
        self,
        observation: int,
        choices: Sequence[int],
        hidden: Sequence[int],
        rng: torch.Generator,
        *,
        objectives: int = 0,
        standardize: bool = False,
    ) -> None:
        super().__init__(observation, sum(choices), hidden, rng, objectives=objectives, standardize=standardize)
        place, first = torch.full((len(choices), max(choices)), -1), 0
        for row, count in zip(place, choices, strict=True):
            row[:count] = torch.arange(first, first + count)
            first += count
        self.register_buffer("place", place)
        self.equal = min(choices) == max(choices)

    def logits(self, outputs: Tensor) -> Tensor:
        """outputs [.., ΣC] → [.., A, max C], the lowest number where a choice has fewer."""
        if self.equal:
            return outputs.unflatten(-1, self.place.shape)
        return outputs[..., self.place].masked_fill(self.place < 0, torch.finfo(outputs.dtype).min)

    def sample(self, outputs: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.logits(outputs)
        actions = logits.argmax(-1) if rng is None else drawn(logits.flatten(0, -2), rng).view(logits.shape[:-1])
        return actions, *self.logp_entropy(outputs, actions)

    def logp_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        logp, entropy = categorical(self.logits(outputs), actions)
        return logp.sum(-1), entropy.sum(-1)

    def distribution(self, observations: Tensor) -> Distribution:
        each = Categorical(logits=self.logits(self(observations)), validate_args=False)
        return Independent(each, 1, validate_args=False)


def drawn(logits: Tensor, rng: torch.Generator) -> Tensor:
    """One choice [N] from each row of logits [N, C]."""
    probability = logits.softmax(-1).to(rng.device)
    return torch.multinomial(probability, 1, generator=rng)[:, 0].to(logits.device)


def categorical(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the actions, and entropies, both [..]: logits [.., C], actions [..]."""
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, actions[..., None]).squeeze(-1), entropy
