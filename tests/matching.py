"""A control problem that is learned in seconds."""

from dataclasses import dataclass

import numpy as np

from policyopt.problems.control.environments import Control, Spaces, Transition


@dataclass(frozen=True, kw_only=True)
class Match(Control):
    """One step: answer a number in [-0.5, 0.5] with the same number; the reward is minus the squared error."""

    @property
    def name(self):
        return "match"

    @property
    def spaces(self):
        return Spaces(observation=1, action=1, discrete=False)

    def make(self, n, seed):
        return MatchEnvironment(n, seed)


class MatchEnvironment:
    def __init__(self, n, seed):
        self.rng = np.random.default_rng(seed)
        self.n = n
        self.observations = self.draw()

    def draw(self):
        return self.rng.uniform(-0.5, 0.5, (self.n, 1)).astype(np.float32)

    def step(self, actions):
        rewards = -10.0 * ((actions - self.observations) ** 2).sum(1).astype(np.float32)
        reached, self.observations = self.observations, self.draw()
        return Transition(reached, rewards, np.ones(self.n, bool), np.zeros(self.n, bool))
