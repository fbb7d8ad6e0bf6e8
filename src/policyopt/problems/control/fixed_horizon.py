"""Simulators whose episodes all begin and end together: what problems with a fixed number of steps share."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from policyopt.problems.control.environments import Array, Transition


class FixedHorizon:
    """n instances side by side, each episode ``horizon`` steps long; ``observations`` [n, S] float32.

    What is random in an episode is drawn at its start from (seed, number of the episode), so that a saved state needs no
    generator. The last step terminates the episode, or cuts it where CUT says that the world would go on.
    """

    CUT: ClassVar[bool] = False

    def __init__(self, n: int, horizon: int, seed: int) -> None:
        self.n, self.horizon, self.seed = n, horizon, seed
        self.episode, self.age = 0, 0
        self.observations = self._begin()

    def start(self, rng: np.random.Generator) -> Array:
        """The first observations [n, S]; draws, and keeps, whatever else will be random in the episode."""
        raise NotImplementedError

    def outcome(self, actions: Array) -> tuple[Array, Array]:
        """The observations [n, S] that follow actions [n, …], and rewards [n] or [n, K]; ``age`` steps lie behind."""
        raise NotImplementedError

    def _begin(self) -> Array:
        return np.asarray(self.start(np.random.default_rng([self.seed, self.episode])), np.float32)

    def step(self, actions: Array) -> Transition:
        following, rewards = self.outcome(actions)
        following, self.age = np.asarray(following, np.float32), self.age + 1
        ended, no = np.full(self.n, self.age == self.horizon), np.zeros(self.n, bool)
        self.observations = following
        if self.age == self.horizon:
            self.age, self.episode = 0, self.episode + 1
            self.observations = self._begin()
        return Transition(following, rewards.astype(np.float32), *((no, ended) if self.CUT else (ended, no)))

    def state_dict(self) -> dict[str, Any]:
        return {"episode": self.episode, "age": self.age, "observations": torch.from_numpy(self.observations.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episode, self.age = state["episode"], state["age"]
        self._begin()
        self.observations = state["observations"].numpy().copy()
