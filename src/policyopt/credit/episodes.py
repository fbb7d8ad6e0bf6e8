"""What a log says episode by episode. Rows [N] belong to episodes 0 … E−1, which stand one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from policyopt.types import Transitions


def episode_returns(reward: Tensor, episode: Tensor) -> Tensor:
    """Undiscounted returns [E] float64 from rewards [N]."""
    return torch.bincount(episode, weights=reward.double())


def episode_lengths(episode: Tensor) -> Tensor:
    """Steps [E] of every episode."""
    return torch.bincount(episode)


def first_rows(episode: Tensor) -> Tensor:
    """The row [E] with which every episode begins."""
    lengths = episode_lengths(episode)
    return lengths.cumsum(0) - lengths


def complete_episodes(data: Transitions) -> Tensor:
    """Which episodes [E] the log has from their first step to their end: those that have a return."""
    first = first_rows(data.episode)
    return torch.ones(len(first), dtype=torch.bool) if data.complete is None else data.complete[first]


def numbered(ended: Tensor) -> Tensor:
    """Episode numbers [N] from where episodes end [N]."""
    return torch.cat([ended.new_zeros(1, dtype=torch.long), ended[:-1].long().cumsum(0)])
