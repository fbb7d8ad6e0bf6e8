"""Masks on continuous actions: an interval for each state, from the suggestions of priors, and maps of the box into it.

All actions lie in the box [-1, 1]^A. ``Interval`` says what the priors span, ``Rescale`` how an action is brought into it,
``Share`` how much of the mask holds; ``ActionMask`` is the three together, in front of an actor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from policyopt.models.priors import suggested
from policyopt.problems.control.environments import Spaces
from policyopt.types import Part


def around(prior: Tensor, half_width: float, low: float = -1.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    """(L, U) of p ± δ, kept in the box; all [..., A]."""
    return (prior - half_width).clamp(low, high), (prior + half_width).clamp(low, high)


def spanned(priors: Tensor, least: float, low: float = -1.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    """(L, U) of the smallest interval with all priors [M, ..., A] in it, widened on both sides to at least 2 ``least``."""
    lower, upper = priors.amin(0), priors.amax(0)
    missing = (least - (upper - lower) / 2).clamp(min=0.0)
    return (lower - missing).clamp(low, high), (upper + missing).clamp(low, high)


def rescaled(action: Tensor, lower: Tensor, upper: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    """The box onto the interval, linearly: low → L, high → U. Exactly the action where the interval is the box [-1, 1]."""
    return (lower + upper) / 2 + (action - (low + high) / 2) * ((upper - lower) / (high - low))


def clipped(action: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """min(max(a, L), U)."""
    return torch.minimum(torch.maximum(action, lower), upper)


def outside(action: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The mean of (L - a)₊² + (a - U)₊², a scalar."""
    return ((lower - action).clamp(min=0.0).square() + (action - upper).clamp(min=0.0).square()).mean()


@dataclass(frozen=True, kw_only=True)
class Interval(Part):
    """p ± ``half_width`` for one prior; half the box is 1. Raises ValueError for a width that isn't positive."""

    half_width: float = 0.4

    def __post_init__(self) -> None:
        if not self.half_width > 0.0:
            raise ValueError(f"half_width must be positive, got {self.half_width:g}")

    def __call__(self, priors: Tensor) -> tuple[Tensor, Tensor]:
        """priors [M, N, A] → L and U [N, A]."""
        if len(priors) != 1:
            raise ValueError(f"an interval around a prior needs one of them, got {len(priors)}: use Envelope")
        return around(priors[0], self.half_width)


@dataclass(frozen=True, kw_only=True)
class Envelope(Interval):
    """What several priors span, at least ``half_width`` to either side of its middle."""

    half_width: float = 0.1

    def __call__(self, priors: Tensor) -> tuple[Tensor, Tensor]:
        return spanned(priors, self.half_width)


@dataclass(frozen=True, kw_only=True)
class Rescale(Part):
    """The actor's box becomes the interval, so that the gradient passes everywhere."""

    def __call__(self, action: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        return rescaled(action, lower, upper)

    def penalty(self, action: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """What the actor pays for raw actions that the map has no gradient for."""
        return action.new_zeros(())


@dataclass(frozen=True, kw_only=True)
class Clip(Rescale):
    """Actions outside move to the nearest end of the interval; the actor pays ``outside`` times their squared distance."""

    outside: float = 1.0

    def __call__(self, action: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        return clipped(action, lower, upper)

    def penalty(self, action: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        return self.outside * outside(action, lower, upper)


@dataclass(frozen=True, kw_only=True)
class Share(Part):
    """How much of the mask holds at ε: its ends move towards those of the box in proportion."""

    def __call__(self, lower: Tensor, upper: Tensor, epsilon: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """L and U [N, A]."""
        return epsilon * lower - (1.0 - epsilon), epsilon * upper + (1.0 - epsilon)

    def window(self, step: int) -> int:
        """Learner steps of one number share their draws while acting."""
        return step


@dataclass(frozen=True, kw_only=True)
class Bernoulli(Share):
    """The whole mask with probability ε, or none: drawn for each transition in updates, and while acting anew every ``hold``
    learner steps (the length of an episode, where that is fixed). Raises ValueError where ``hold`` isn't positive."""

    hold: int = 1

    def __post_init__(self) -> None:
        if self.hold < 1:
            raise ValueError(f"hold is a positive number of steps, got {self.hold}")

    def __call__(self, lower: Tensor, upper: Tensor, epsilon: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        free = torch.rand(len(lower), 1, generator=rng) >= epsilon
        return lower.masked_fill(free, -1.0), upper.masked_fill(free, 1.0)

    def window(self, step: int) -> int:
        return step // self.hold


class ActionMask(nn.Module):
    """The priors and what becomes of their actions. ``epsilon`` is the present ε; at 0 every action passes unchanged."""

    epsilon: Tensor
    moving_return: Tensor
    prior_return: Tensor

    def __init__(self, priors: Sequence[Any], spaces: Spaces, interval: Interval, map: Rescale, share: Share) -> None:
        super().__init__()
        self.priors, self.spaces = tuple(priors), spaces
        self.interval, self.map, self.share = interval, map, share
        self.register_buffer("epsilon", torch.ones(()))
        self.register_buffer("moving_return", torch.full((), torch.nan))
        self.register_buffer("prior_return", torch.full((), torch.nan))
        self.draws = (0, 0)  # seed and window of what is drawn while acting

    def bounds(self, observation: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """L and U [N, A] for observations [N, S]; the whole box where a prior fails."""
        priors = torch.stack([suggested(prior, observation, self.spaces) for prior in self.priors])
        lower, upper = self.interval(priors)
        lower, upper = lower.nan_to_num(-1.0), upper.nan_to_num(1.0)
        return self.share(lower, upper, float(self.epsilon), rng)

    def forward(self, action: Tensor, observation: Tensor, rng: torch.Generator) -> Tensor:
        """What is executed, [N, A], for raw actions [N, A]."""
        return action if self.epsilon == 0.0 else self.map(action, *self.bounds(observation, rng))
