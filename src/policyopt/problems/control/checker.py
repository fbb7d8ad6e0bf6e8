"""Logged walks to a goal, by a behaviour that is good in some places and random in others: for offline methods.

A point in [0, 10]² moves by its action in [−1, 1]². An episode ends within 0.7 of the goal (9, 9), or is cut after 40
steps. Reward: −1 a step, 0 for the step that reaches the goal. Starts are uniform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from policyopt.problems.control.environments import Array, Control, Spaces
from policyopt.problems.control.walks import Walks, straight_to
from policyopt.problems.language.base import read_options
from policyopt.types import Transitions

SIDE, GOAL, RADIUS, HORIZON = 10.0, np.array([9.0, 9.0]), 0.7, 40
NOISE = 0.2  # deviation of the good actions


def towards_goal(position: Array) -> Array:
    """Actions [N, 2] on the straight way, as long as the box allows, from positions [N, 2]."""
    return straight_to(GOAL, position)


class CheckerWalks(Walks):
    """Walks from uniform starts that end near the goal."""

    NAME, LOW, HIGH, HORIZON = "checker", 0.0, SIDE, HORIZON

    def outcome(self, reached: Array, action: Array) -> tuple[Array, Array]:
        terminated = ((reached - GOAL) ** 2).sum(1) <= RADIUS**2
        return terminated.astype(np.float32) - 1.0, terminated


@dataclass(frozen=True, kw_only=True)
class Checker(Control):
    """``logged`` transitions of a behaviour: towards the goal (with noise), or uniform.

    good: the share of good actions, drawn anew each step; None: the plane is a checkerboard of unit cells, good in every
    other one. Raises ValueError for settings that make no sense.
    """

    episodes: int = 50
    good: float | None = None
    logged: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.good is not None and not 0.0 <= self.good <= 1.0:
            raise ValueError(f"good is a share, from 0 to 1, or None for a checkerboard; got {self.good}")
        if min(self.logged, self.episodes) < 1:
            raise ValueError(f"logged and episodes must be positive, got {self.logged} and {self.episodes}")

    @property
    def name(self) -> str:
        return "checker"

    @property
    def spaces(self) -> Spaces:
        return Spaces(observation=2, action=2, discrete=False)

    def make(self, n: int, seed: int) -> CheckerWalks:
        return CheckerWalks(n, seed)

    def behaviour(self, position: Array, rng: np.random.Generator) -> Array:
        """Logged actions [N, 2] at positions [N, 2]."""
        share = rng.random(len(position))
        good = np.floor(position).sum(1) % 2 == 0 if self.good is None else share < self.good
        wanted = towards_goal(position) + rng.normal(0.0, NOISE, position.shape)
        return np.where(good[:, None], np.clip(wanted, -1.0, 1.0), rng.uniform(-1.0, 1.0, position.shape))

    def transitions(self) -> Transitions:
        """The data: 100 walks side by side, in the order of time."""
        environments, rng = self.make(100, self.seed), np.random.default_rng([self.seed, 0])
        columns: list[tuple[Any, ...]] = []
        for _ in range(-(-self.logged // 100)):
            before = environments.observations
            action = self.behaviour(environments.position, rng).astype(np.float32)
            step = environments.step(action)
            columns.append((before, action, step.rewards, step.next_observations, step.terminated))
        stacked = [torch.from_numpy(np.concatenate(c)[: self.logged]) for c in zip(*columns, strict=True)]
        return Transitions(*stacked, batch_size=[self.logged])


def parse(text: str = "") -> Checker:
    """``"good=0.1,seed=3"``, the fields of ``Checker`` → the problem."""
    readers: dict[str, Any] = {"episodes": int, "good": float, "logged": int, "seed": int}
    return Checker(**read_options(text, readers, ",", "checker"))
