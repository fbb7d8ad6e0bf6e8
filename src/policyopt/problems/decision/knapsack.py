"""The 0/1 knapsack problem as a construction: what remains are the items left and the capacity left (arXiv 2301.03313).

Weights and values are whole numbers, so that dynamic programming gives the exact optimum. Axes as in ``construction``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorClass
from torch import Tensor

from policyopt.problems.decision.construction import Construction, Observation, read, remaining

SCALE = 100.0  # weights and values are 1 … 100; all three features are divided by this, whatever the size


def best_selection(value: NDArray[np.int64], weight: NDArray[np.int64], capacity: int) -> NDArray[np.bool_]:
    """The items [N, C] of an optimal selection by dynamic programming, in O(N C capacity): value, weight [N, C]."""
    count, items = value.shape
    room = np.arange(capacity + 1)
    best, takes = np.zeros((count, capacity + 1), np.int64), np.zeros((items, count, capacity + 1), bool)
    for item in range(items):
        before = room - weight[:, item, None]
        taken = np.take_along_axis(best, before.clip(0), 1) + value[:, item, None]
        takes[item] = (before >= 0) & (taken > best)
        best = np.where(takes[item], taken, best)
    chosen, left, row = np.zeros((count, items), bool), np.full(count, capacity), np.arange(count)
    for item in reversed(range(items)):
        chosen[:, item] = takes[item, row, left]
        left -= weight[:, item] * chosen[:, item]
    return chosen


class PartialSelection(TensorClass["nocast"]):  # type: ignore[type-arg, name-defined]
    """Selections so far: value, weight [N, C]; remaining [N], the capacity left; gone [N, t], items taken or discarded.

    An action is an item: one that does not fit is discarded, which changes nothing else.
    """

    value: Tensor
    weight: Tensor
    remaining: Tensor
    gone: Tensor

    @property
    def done(self) -> Tensor:
        fits = self.weight <= self.remaining[:, None]
        return ~fits.scatter(1, self.gone, False).any(1)

    def tail(self) -> Observation:
        """The items left and the capacity left: F = 3 (value, weight, capacity left)."""
        index = remaining(self.gone, self.weight.shape[1])
        value, weight = self.value.gather(1, index), self.weight.gather(1, index)
        capacity = self.remaining[:, None].expand(index.shape)
        legal = weight <= capacity
        legal[:, 0] |= ~legal.any(1)
        return {"features": torch.stack([value, weight, capacity], -1) / SCALE, "legal": legal, "choice": index}

    def step(self, action: Tensor) -> tuple[PartialSelection, Tensor]:
        """Takes an item, its value is the reward, or discards one that does not fit.

        Raises ValueError where the item was taken or discarded before.
        """
        again = (self.gone == action[:, None]).any(1)
        if bool(again.any()):
            raise ValueError(f"instance {int(again.nonzero()[0])} chose an item that is gone: choose a legal action")
        value, weight = (column.gather(1, action[:, None])[:, 0] for column in (self.value, self.weight))
        fits = weight <= self.remaining
        following = self.replace(
            remaining=self.remaining - weight * fits, gone=torch.cat([self.gone, action[:, None]], 1)
        )
        return following, (value * fits).float()


@dataclass(frozen=True, kw_only=True)
class Knapsack(Construction):
    """Weights and values uniform in 1 … 100; ``capacity_per_item`` 25 lets about half of the total weight in."""

    name: str = "knapsack"
    size: int = 30
    test_sizes: tuple[int, ...] = (30,)
    capacity_per_item: int = 25

    def instances(self, count: int, size: int, rng: torch.Generator) -> PartialSelection:
        return PartialSelection(
            value=torch.randint(1, 101, (count, size), generator=rng),
            weight=torch.randint(1, 101, (count, size), generator=rng),
            remaining=torch.full((count,), self.capacity_per_item * size),
            gone=torch.zeros(count, 0, dtype=torch.long),
            batch_size=[count],
        )

    def solve(self, start: PartialSelection) -> tuple[Tensor, Tensor]:
        """Any order of an optimal set is a solution; here the items' own."""
        capacity = int(start.remaining[0])
        parts: list[Any] = [
            best_selection(part.value.numpy(), part.weight.numpy(), capacity) for part in start.split(200)
        ]
        chosen = torch.from_numpy(np.concatenate(parts))
        order = torch.argsort((~chosen).to(torch.int8), dim=1, stable=True)
        return torch.where(chosen.gather(1, order), order, -1), (start.value * chosen).sum(1).float()

    def vary(self, start: PartialSelection, actions: Tensor, rng: torch.Generator) -> tuple[PartialSelection, Tensor]:
        """The optimal items in a random order."""
        keys = torch.rand(actions.shape, generator=rng) + (actions < 0)
        return start, actions.gather(1, keys.argsort(1))

    def experts(self, actions: Tensor, made: int) -> Tensor:
        """A set has no order: every optimal item that is not taken yet is as good as any other."""
        return actions[:, made:]


def parse(text: str = "") -> Knapsack:
    """``"size=50,test_sizes=50-100"`` → the problem."""
    return read(Knapsack, text)
