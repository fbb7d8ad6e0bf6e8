"""Four goals around the start, equally good and equally far: a problem with several best solutions.

A point in [−6, 6]² starts near the middle, from N(0, 0.1²), and moves by its action in [−1, 1]². Goals are at (±5, 0)
and (0, ±5). An episode ends within 1 of a goal, which earns 1, or is cut after 15 steps; every step costs 0.1 times the
distance to the nearest goal and 0.01 |action|².
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policyopt.problems.control.environments import Array, Control, Spaces
from policyopt.problems.control.walks import Walks

SIDE, SPREAD, RADIUS, HORIZON = 6.0, 0.1, 1.0, 15
GOALS = np.array([[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0], [0.0, -5.0]])


def goal_distances(position: Array) -> Array:
    """Distances [N, 4] of positions [N, 2] from the goals."""
    return np.asarray(np.linalg.norm(position[:, None] - GOALS, axis=2))


class MultiGoalWalks(Walks):
    """Walks from the middle that end at a goal."""

    NAME, LOW, HIGH, HORIZON = "multi-goal", -SIDE, SIDE, HORIZON

    def start(self, rng: np.random.Generator) -> Array:
        return rng.normal(0.0, SPREAD, (self.n, 2))

    def outcome(self, reached: Array, action: Array) -> tuple[Array, Array]:
        nearest = goal_distances(reached).min(1)
        terminated = nearest <= RADIUS
        return terminated - 0.1 * nearest - 0.01 * (action**2).sum(1), terminated


@dataclass(frozen=True, kw_only=True)
class MultiGoal(Control):
    """A walk from the middle of a plane to any of its goals."""

    episodes: int = 20

    @property
    def name(self) -> str:
        return "multi-goal"

    @property
    def spaces(self) -> Spaces:
        return Spaces(observation=2, action=2, discrete=False)

    def make(self, n: int, seed: int) -> MultiGoalWalks:
        return MultiGoalWalks(n, seed)


def parse(text: str = "", *, episodes: int = 20) -> MultiGoal:
    """The problem has no options but ``episodes``."""
    if text:
        raise ValueError(f"multi-goal has no options, got {text!r}")
    return MultiGoal(episodes=episodes)
