"""Nearest pairs of a data set, by SciPy's k-d tree: exact, quick below some twenty dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn


class NearestPairs(nn.Module):
    """The action of the pair nearest to (state, action) by ‖(state_weight · s, a) − (state_weight · s', a')‖.

    neighbour: 1 for the nearest, 2 for the second. The tree is made from the data set at the start and never saved.
    """

    def __init__(self, state_weight: float, neighbour: int) -> None:
        super().__init__()
        self.state_weight, self.neighbour = state_weight, neighbour
        self.tree: Any = None
        self.actions = torch.empty(0)

    def fit(self, observation: Tensor, action: Tensor) -> None:
        """Take the pairs [N, S] and [N, A]. Raises ValueError where there are fewer than the neighbour's number."""
        if len(action) < self.neighbour:
            raise ValueError(f"the data set has {len(action)} pairs: there is no neighbour number {self.neighbour}")
        self.tree, self.actions = cKDTree(self._key(observation, action)), action

    def _key(self, observation: Tensor, action: Tensor) -> Any:
        return np.concatenate((self.state_weight * observation.numpy(), action.numpy()), 1)

    @torch.no_grad()
    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """The actions [N, A] of the pairs nearest to observations [N, S] and actions [N, A]."""
        _, index = self.tree.query(self._key(observation, action.detach()), k=[self.neighbour])
        return self.actions[torch.from_numpy(index[:, 0])]
