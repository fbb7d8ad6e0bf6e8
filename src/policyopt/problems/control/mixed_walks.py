"""Logged walks to the centre, whole episodes of an expert among many of random actions: for offline methods.

A point in [0, 20]² moves by its action in [−1, 1]². An episode ends within 1 of the centre, or is cut after 40 steps.
Reward: −1/20 of the distance to the centre. Starts are uniform, so that part of a return is luck.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch

from policyopt.problems.control.environments import Array, Control, Spaces, Transition
from policyopt.types import Transitions

SIDE, CENTRE, RADIUS, HORIZON = 20.0, np.array([10.0, 10.0]), 1.0, 40
NOISE = 0.1  # deviation of the expert's actions


def to_the_centre(position: Array) -> Array:
    """Actions [N, 2] on the straight way, as long as the box allows, from positions [N, 2]."""
    way = CENTRE - position
    return np.asarray(way / np.maximum(np.abs(way).max(1, keepdims=True), 1.0))


class Walkers:
    """n points side by side; ``observations`` [n, 2] are their positions. Starts are drawn from (seed, number of draws)."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.draws = n, seed, 0
        self.position, self.elapsed = self._starts(), np.zeros(n, np.int64)

    @property
    def observations(self) -> Array:
        return self.position.astype(np.float32)

    def _starts(self) -> Array:
        self.draws += 1
        return np.random.default_rng([self.seed, self.draws]).uniform(0.0, SIDE, (self.n, 2))

    def step(self, actions: Array) -> Transition:
        """Actions [n, 2]; raises ValueError for another shape or a number that isn't finite."""
        if actions.shape != self.position.shape or not np.isfinite(actions).all():
            raise ValueError(
                f"mixed-walks: expected finite actions of shape {self.position.shape}, got {actions.shape}"
            )
        reached = np.clip(self.position + np.clip(actions.astype(np.float64), -1.0, 1.0), 0.0, SIDE)
        distance = np.linalg.norm(reached - CENTRE, axis=1)
        self.elapsed += 1
        terminated = distance <= RADIUS
        truncated = ~terminated & (self.elapsed >= HORIZON)
        done = terminated | truncated
        self.position = np.where(done[:, None], self._starts(), reached) if done.any() else reached
        self.elapsed[done] = 0
        return Transition(reached.astype(np.float32), (-distance / SIDE).astype(np.float32), terminated, truncated)

    def state_dict(self) -> dict[str, Any]:
        arrays = {"position": self.position, "elapsed": self.elapsed}
        return {"draws": self.draws, **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.draws = state["draws"]
        self.position, self.elapsed = state["position"].numpy().copy(), state["elapsed"].numpy().copy()


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

    def make(self, n: int, seed: int) -> Walkers:
        return Walkers(n, seed)

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
    kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(MixedWalks)}
    options: dict[str, Any] = {}
    for piece in filter(None, text.split(",")):
        name, _, value = piece.partition("=")
        if name not in kinds:
            near = ", ".join(get_close_matches(name, kinds) or kinds)
            raise ValueError(f"mixed-walks has no option {name!r}; nearest: {near}")
        try:
            options[name] = kinds[name](value)
        except ValueError:
            raise ValueError(f"{name} of mixed-walks must be of type {kinds[name].__name__}, got {value!r}") from None
    return MixedWalks(**options)
