"""What a log says episode by episode. Rows [N] belong to episodes 0 … E−1, which stand one after the other."""

from __future__ import annotations

import torch
from torch import Tensor


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


def numbered(ended: Tensor) -> Tensor:
    """Episode numbers [N] from where episodes end [N]."""
    return torch.cat([ended.new_zeros(1, dtype=torch.long), ended[:-1].long().cumsum(0)])
