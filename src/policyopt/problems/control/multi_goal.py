"""Four goals around the start, equally good and equally far: a problem with several best solutions.

A point in [−6, 6]² starts near the middle, from N(0, 0.1²), and moves by its action in [−1, 1]². Goals are at (±5, 0)
and (0, ±5). An episode ends within 1 of a goal, which earns 1, or is cut after 15 steps; every step costs 0.1 times the
distance to the nearest goal and 0.01 |action|².
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from policyopt.problems.control.environments import Array, Control, Spaces, Transition

SIDE, SPREAD, RADIUS, HORIZON = 6.0, 0.1, 1.0, 15
GOALS = np.array([[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0], [0.0, -5.0]])


def goal_distances(position: Array) -> Array:
    """Distances [N, 4] of positions [N, 2] from the goals."""
    return np.asarray(np.linalg.norm(position[:, None] - GOALS, axis=2))


class MultiGoalEnvironments:
    """n points side by side; ``observations`` [n, 2] are their positions. Starts are drawn from (seed, number of draws)."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.draws = n, seed, 0
        self.position, self.elapsed = self._starts(), np.zeros(n, np.int64)

    @property
    def observations(self) -> Array:
        return self.position.astype(np.float32)

    def _starts(self) -> Array:
        self.draws += 1
        return np.random.default_rng([self.seed, self.draws]).normal(0.0, SPREAD, (self.n, 2))

    def step(self, actions: Array) -> Transition:
        """Actions [n, 2]; raises ValueError for another shape or a number that isn't finite."""
        if actions.shape != self.position.shape or not np.isfinite(actions).all():
            raise ValueError(f"multi-goal: expected finite actions of shape {self.position.shape}, got {actions.shape}")
        action = np.clip(actions.astype(np.float64), -1.0, 1.0)
        reached = np.clip(self.position + action, -SIDE, SIDE)
        self.elapsed += 1
        nearest = goal_distances(reached).min(1)
        terminated = nearest <= RADIUS
        truncated = ~terminated & (self.elapsed >= HORIZON)
        done = terminated | truncated
        self.position = np.where(done[:, None], self._starts(), reached) if done.any() else reached
        self.elapsed[done] = 0
        rewards = terminated - 0.1 * nearest - 0.01 * (action**2).sum(1)
        return Transition(reached.astype(np.float32), rewards.astype(np.float32), terminated, truncated)

    def state_dict(self) -> dict[str, Any]:
        arrays = {"position": self.position, "elapsed": self.elapsed}
        return {"draws": self.draws, **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.draws = state["draws"]
        self.position, self.elapsed = state["position"].numpy().copy(), state["elapsed"].numpy().copy()


@dataclass(frozen=True, kw_only=True)
class MultiGoal(Control):
    episodes: int = 20

    @property
    def name(self) -> str:
        return "multi-goal"

    @property
    def spaces(self) -> Spaces:
        return Spaces(observation=2, action=2, discrete=False)

    def make(self, n: int, seed: int) -> MultiGoalEnvironments:
        return MultiGoalEnvironments(n, seed)


def parse(text: str = "", *, episodes: int = 20) -> MultiGoal:
    """The problem has no options but ``episodes``."""
    if text:
        raise ValueError(f"multi-goal has no options, got {text!r}")
    return MultiGoal(episodes=episodes)
