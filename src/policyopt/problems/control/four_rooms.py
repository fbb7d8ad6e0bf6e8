"""Four rooms: a grid with a wall cross and four doors, from one room to the far corner; deterministic, with four actions.

Cells are (row, column) of a 9 × 9 square; an action moves one cell up, right, down or left, or leaves the walker where a
wall is. An episode starts anywhere in the first room, and ends in the far corner with the reward 1, or is cut after 60 steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from policyopt.problems.control.environments import Array, Control, Spaces, Transition

SIZE, HORIZON = 9, 60
MIDDLE, DOORS = SIZE // 2, (SIZE // 4, SIZE - 1 - SIZE // 4)
MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])
GOAL = np.array([SIZE - 1, SIZE - 1])
WALLS = np.zeros((SIZE, SIZE), bool)
WALLS[MIDDLE, :] = WALLS[:, MIDDLE] = True
for door in DOORS:
    WALLS[MIDDLE, door] = WALLS[door, MIDDLE] = False


def moved(cell: Array, action: Array) -> Array:
    """Cells [N, 2] after actions [N]."""
    target = np.clip(cell + MOVES[action], 0, SIZE - 1)
    return np.asarray(np.where(WALLS[target[:, 0], target[:, 1], None], cell, target))


def observe(cell: Array) -> Array:
    """Cells [N, 2] → one-hot observations [N, 81]."""
    return np.eye(SIZE**2, dtype=np.float32)[SIZE * cell[:, 0] + cell[:, 1]]


class Walkers:
    """n walkers side by side. Starts are drawn from (seed, number of draws)."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.draws = n, seed, 0
        self.cell, self.elapsed = self._starts(), np.zeros(n, np.int64)

    @property
    def observations(self) -> Array:
        return observe(self.cell)

    def _starts(self) -> Array:
        self.draws += 1
        return np.random.default_rng([self.seed, self.draws]).integers(0, MIDDLE, (self.n, 2))

    def step(self, actions: Array) -> Transition:
        """Actions [n], from 0 to 3; raises ValueError for others."""
        if actions.shape != (self.n,) or not np.isin(actions, range(len(MOVES))).all():
            raise ValueError(f"four-rooms: expected {self.n} actions from 0 to 3, got {actions}")
        reached = moved(self.cell, actions)
        self.elapsed += 1
        terminated = (reached == GOAL).all(1)
        truncated = ~terminated & (self.elapsed >= HORIZON)
        done = terminated | truncated
        self.cell = np.where(done[:, None], self._starts(), reached) if done.any() else reached
        self.elapsed[done] = 0
        return Transition(observe(reached), terminated.astype(np.float32), terminated, truncated)

    def state_dict(self) -> dict[str, Any]:
        arrays = {"cell": self.cell, "elapsed": self.elapsed}
        return {"draws": self.draws, **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.draws = state["draws"]
        self.cell, self.elapsed = state["cell"].numpy().copy(), state["elapsed"].numpy().copy()


@dataclass(frozen=True, kw_only=True)
class FourRooms(Control):
    """The problem. ``eval/return`` is the share of episodes that reach the corner."""

    episodes: int = 50

    @property
    def name(self) -> str:
        return "four-rooms"

    @property
    def spaces(self) -> Spaces:
        return Spaces(observation=SIZE**2, action=len(MOVES), discrete=True)

    def make(self, n: int, seed: int) -> Walkers:
        return Walkers(n, seed)


def parse(text: str = "") -> FourRooms:
    """``""`` → the problem."""
    if text:
        raise ValueError(f"four-rooms has no options, got {text!r}")
    return FourRooms()
