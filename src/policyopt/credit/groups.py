"""Baselines from a group of responses to one prompt: pure functions on (reward [N], group [N]), and the parts around them.

``group`` holds any integers; rows with the same one belong together, in any order. Settled once, here: the standard deviation
of a group is the unbiased one (divisor G - 1), as PyTorch, TRL and verl compute it, ε = 1e-6 is ADDED to it; a group without
variance gives exactly zero; a group of one has no baseline, and asking for one is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from policyopt.types import Part, Rollouts


def group_index(group: Tensor) -> tuple[Tensor, Tensor]:
    """group [N] → (index [N] into 0 … U-1, size [U] of each group)."""
    _, index, size = group.unique(return_inverse=True, return_counts=True)
    return index, size


def several(size: Tensor, what: str) -> None:
    """Raise ValueError where a group has a single row; size [U]."""
    if int(size.min()) < 2:
        raise ValueError(
            f"{what} needs at least 2 samples a prompt, but a group has only one: set samples to 2 or more"
        )


def group_mean(reward: Tensor, group: Tensor) -> Tensor:
    """Mean reward of each row's group [N], summed in float64: equal rewards give exactly their value."""
    index, size = group_index(group)
    total = torch.zeros(len(size), dtype=torch.float64, device=reward.device).index_add_(0, index, reward.double())
    return (total / size)[index].to(reward.dtype)


def group_deviation(reward: Tensor, group: Tensor) -> Tensor:
    """Unbiased standard deviation of each row's group [N]; raises ValueError for a group of one."""
    index, size = group_index(group)
    several(size, "a group's standard deviation")
    square = (reward - group_mean(reward, group)).square()
    total = torch.zeros(len(size), dtype=reward.dtype, device=reward.device).index_add_(0, index, square)
    return (total / (size - 1)).sqrt()[index]


def group_normalized(reward: Tensor, group: Tensor, epsilon: float = 1e-6) -> Tensor:
    """(reward - mean) / (standard deviation + ε) within the group (GRPO, arXiv 2402.03300, §4.1.2)."""
    difference = reward - group_mean(reward, group)
    return difference / (group_deviation(reward, group) + epsilon)


def leave_one_out(reward: Tensor, group: Tensor) -> Tensor:
    """reward - mean reward of the OTHERS of the group (RLOO, arXiv 2402.14740, Eq. 6) = G / (G - 1) · (reward - mean)."""
    index, size = group_index(group)
    several(size, "the leave-one-out baseline")
    scale = (size / (size - 1)).to(reward.dtype)
    return scale[index] * (reward - group_mean(reward, group))


def over_steps(advantage: Tensor, batch: Rollouts) -> Tensor:
    """One number a row [N] → the same at every step [N, T], zero where the policy did not choose."""
    return advantage[:, None] * batch.mask


@dataclass(frozen=True, kw_only=True)
class Credit(Part):
    """experience → experience with advantages (and returns, weights)."""

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GroupMean(Credit):
    """reward - mean reward of the group (Dr. GRPO)."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "group")
    gives: ClassVar[tuple[str, ...]] = ("advantage",)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        reward = batch.scores["reward"]
        return batch.replace(advantage=over_steps(reward - group_mean(reward, batch.group), batch))


@dataclass(frozen=True, kw_only=True)
class GroupNormalized(Credit):
    """(reward - mean) / (standard deviation + ε) within the group (GRPO)."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "group")
    gives: ClassVar[tuple[str, ...]] = ("advantage",)
    epsilon: float = 1e-6

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        advantage = group_normalized(batch.scores["reward"], batch.group, self.epsilon)
        return batch.replace(advantage=over_steps(advantage, batch))


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(Credit):
    """reward - mean reward of the others of the group (RLOO)."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "group")
    gives: ClassVar[tuple[str, ...]] = ("advantage",)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        return batch.replace(advantage=over_steps(leave_one_out(batch.scores["reward"], batch.group), batch))
