"""Logged walks to the centre, whole episodes of an expert among many of random actions: for offline methods.

A point in [0, 20]² moves by its action in [−1, 1]². An episode ends within 1 of the centre, or is cut after 40 steps.
Reward: −1/20 of the distance to the centre. Starts are uniform, so that part of a return is luck.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from policyopt.problems.control.environments import Array, Control, Spaces
from policyopt.problems.control.walks import Walks, straight_to
from policyopt.problems.language.base import read_options
from policyopt.types import Transitions

SIDE, CENTRE, RADIUS, HORIZON = 20.0, np.array([10.0, 10.0]), 1.0, 40
NOISE = 0.1  # deviation of the expert's actions


def to_the_centre(position: Array) -> Array:
    """Actions [N, 2] on the straight way, as long as the box allows, from positions [N, 2]."""
    return straight_to(CENTRE, position)


class WalksToTheCentre(Walks):
    """Walks from uniform starts that end near the centre."""

    NAME, LOW, HIGH, HORIZON = "mixed-walks", 0.0, SIDE, HORIZON

    def outcome(self, reached: Array, action: Array) -> tuple[Array, Array]:
        distance = np.linalg.norm(reached - CENTRE, axis=1)
        return -distance / SIDE, distance <= RADIUS


@dataclass(frozen=True, kw_only=True)
class MixedWalks(Control):
    """``logged`` episodes, the first ``expert`` of which (a share) go to the centre and the others anywhere. Raises ValueError
    for settings that make no sense."""

    episodes: int = 50
    expert: float = 0.05
    logged: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.expert <= 1.0:
            raise ValueError(f"expert is a share of the episodes, from 0 to 1, got {self.expert}")
        if min(self.logged, self.episodes) < 1:
            raise ValueError(f"logged and episodes must be positive, got {self.logged} and {self.episodes}")

    @property
    def name(self) -> str:
        return "mixed-walks"

    @property
    def spaces(self) -> Spaces:
        return Spaces(observation=2, action=2, discrete=False)

    def make(self, n: int, seed: int) -> WalksToTheCentre:
        return WalksToTheCentre(n, seed)

    def transitions(self) -> Transitions:
        """The data, episode after episode."""
        walkers, rng = self.make(self.logged, self.seed), np.random.default_rng([self.seed, 0])
        good = np.arange(self.logged) < round(self.expert * self.logged)
        alive, columns, kept = np.ones(self.logged, bool), list[tuple[Any, ...]](), []
        for _ in range(HORIZON):
            before, wanted = walkers.observations, to_the_centre(walkers.position)
            wanted = np.clip(wanted + rng.normal(0.0, NOISE, wanted.shape), -1.0, 1.0)
            action = np.where(good[:, None], wanted, rng.uniform(-1.0, 1.0, wanted.shape)).astype(np.float32)
            step = walkers.step(action)
            columns.append((before, action, step.rewards, step.next_observations, step.terminated, step.truncated))
            kept.append(alive)
            alive = alive & ~(step.terminated | step.truncated)
        rows = np.stack(kept, 1)  # [episodes, steps]
        named = ("observation", "action", "reward", "next_observation", "terminated", "truncated")
        stacked: dict[str, Any] = {
            name: torch.from_numpy(np.stack([step[i] for step in columns], 1)[rows]) for i, name in enumerate(named)
        }
        episode = torch.from_numpy(np.nonzero(rows)[0])
        return Transitions(**stacked, episode=episode, batch_size=[len(episode)])


def parse(text: str = "") -> MixedWalks:
    """``"expert=0.1,seed=3"``, the fields of ``MixedWalks`` → the problem."""
    readers: dict[str, Any] = {field.name: type(field.default) for field in fields(MixedWalks)}
    return MixedWalks(**read_options(text, readers, ",", "mixed-walks"))
