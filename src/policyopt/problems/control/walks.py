"""Points that walk in a square box: what problems with positions as states and steps as actions share."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from policyopt.problems.control.environments import Array, Transition


def straight_to(goal: Array, position: Array) -> Array:
    """Actions [N, 2] on the straight way to the goal [2], as long as the box [-1, 1]² allows, from positions [N, 2]."""
    way = goal - position
    return np.asarray(way / np.maximum(np.abs(way).max(1, keepdims=True), 1.0))


class Walks:
    """n points side by side, each moved by its action in [-1, 1]²; ``observations`` [n, 2] are their positions.

    Episodes end where ``outcome`` says so, and are cut after HORIZON steps. Starts are drawn from (seed, number of draws), so
    that a saved state needs no generator.
    """

    NAME: ClassVar[str]
    LOW: ClassVar[float]
    HIGH: ClassVar[float]
    HORIZON: ClassVar[int]

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.draws = n, seed, 0
        self.position, self.elapsed = self._starts(), np.zeros(n, np.int64)

    def start(self, rng: np.random.Generator) -> Array:
        """Start positions [n, 2]: uniform in the box."""
        return rng.uniform(self.LOW, self.HIGH, (self.n, 2))

    def outcome(self, reached: Array, action: Array) -> tuple[Array, Array]:
        """Rewards and terminations [n] of the positions [n, 2] that were reached by actions [n, 2]."""
        raise NotImplementedError

    @property
    def observations(self) -> Array:
        return self.position.astype(np.float32)

    def _starts(self) -> Array:
        self.draws += 1
        return self.start(np.random.default_rng([self.seed, self.draws]))

    def step(self, actions: Array) -> Transition:
        """Actions [n, 2]; raises ValueError for another shape or a number that isn't finite."""
        if actions.shape != self.position.shape or not np.isfinite(actions).all():
            raise ValueError(
                f"{self.NAME}: expected finite actions of shape {self.position.shape}, got {actions.shape}"
            )
        action = np.clip(actions.astype(np.float64), -1.0, 1.0)
        reached = np.clip(self.position + action, self.LOW, self.HIGH)
        self.elapsed += 1
        rewards, terminated = self.outcome(reached, action)
        truncated = ~terminated & (self.elapsed >= self.HORIZON)
        done = terminated | truncated
        self.position = np.where(done[:, None], self._starts(), reached) if done.any() else reached
        self.elapsed[done] = 0
        return Transition(reached.astype(np.float32), rewards.astype(np.float32), terminated, truncated)

    def state_dict(self) -> dict[str, Any]:
        arrays = {"position": self.position, "elapsed": self.elapsed}
        return {"draws": self.draws, **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.draws = state["draws"]
        self.position, self.elapsed = state["position"].numpy().copy(), state["elapsed"].numpy().copy()
