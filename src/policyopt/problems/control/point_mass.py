"""A point mass with three objectives that are at odds: be near A, be near B, use little force.

All instances move in array operations. Every reward lies in [0, 1], so that returns are positive and the Pareto front of
expected returns is smooth and convex.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policyopt.problems.control.environments import Array, Control, Spaces
from policyopt.problems.control.fixed_horizon import FixedHorizon

A, B = np.array([1.0, 0.0]), np.array([-1.0, 1.0])
BOUND = 1.5  # of each coordinate: keeps distances below 4 and rewards positive


@dataclass(frozen=True, kw_only=True)
class PointMass(Control):
    """State: position and velocity in the plane; action: a force in [-1, 1]²; an episode is ``horizon`` steps.

    Rewards after a step: 1 - |x - A| / 4, 1 - |x - B| / 4, 1 - |force|² / 2. Episodes start at rest, at a position drawn
    uniformly from [-0.5, 0.5]².
    """

    horizon: int = 50

    def __post_init__(self) -> None:
        if self.horizon < 1 or self.episodes < 1:
            raise ValueError(f"horizon and episodes must be positive, got {self.horizon} and {self.episodes}")

    @property
    def name(self) -> str:
        return "point-mass"

    @property
    def spaces(self) -> Spaces:
        return Spaces(observation=4, action=2, discrete=False, objectives=3)

    def make(self, n: int, seed: int) -> PointMasses:
        return PointMasses(n, self.horizon, seed)


class PointMasses(FixedHorizon):
    """n point masses; ``observations`` [n, 4] are (position, velocity)."""

    CUT: ClassVar[bool] = True

    def start(self, rng: np.random.Generator) -> Array:
        return np.concatenate([rng.uniform(-0.5, 0.5, (self.n, 2)), np.zeros((self.n, 2))], 1)

    def outcome(self, actions: Array) -> tuple[Array, Array]:
        if not np.isfinite(actions).all():
            raise ValueError("point-mass: an action is not finite: the policy broke down")
        force = np.clip(actions, -1.0, 1.0).astype(np.float64)
        position, velocity = self.observations[:, :2], 0.9 * self.observations[:, 2:] + 0.2 * force
        position = np.clip(position + 0.1 * velocity, -BOUND, BOUND)
        away = [1.0 - np.linalg.norm(position - goal, axis=1) / 4.0 for goal in (A, B)]
        return np.concatenate([position, velocity], 1), np.stack([*away, 1.0 - (force**2).sum(1) / 2.0], 1)


def parse(text: str = "", *, episodes: int = 10) -> PointMass:
    """``""`` or ``"horizon=100"`` → the problem."""
    name, _, value = text.partition("=")
    if text and (name != "horizon" or not value.isdigit()):
        raise ValueError(f"point-mass has one option, horizon=<steps>, got {text!r}")
    return PointMass(episodes=episodes, horizon=int(value) if text else 50)
