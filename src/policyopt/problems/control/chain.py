"""A chain of states with a small reward nearby and a large one far away: a local optimum for policy gradients."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from policyopt.problems.control.environments import Array, Control, Spaces
from policyopt.problems.control.fixed_horizon import FixedHorizon
from policyopt.problems.language.base import read_options


@dataclass(frozen=True, kw_only=True)
class Chain(Control):
    """States 0 … ``states`` − 1 in a row, seen one-hot; action 0 steps left, 1 right, and slips the other way with
    probability ``slip``. Episodes begin in state 1 and last ``horizon`` steps.

    A step that ends in the leftmost state earns ``near``, one that ends in the rightmost 1. ``gamma`` is the discount of
    ``value``. Raises ValueError for numbers that make no sense.
    """

    states: int = 6
    slip: float = 0.1
    near: float = 0.2
    horizon: int = 20
    gamma: float = 0.95

    def __post_init__(self) -> None:
        if self.states < 3 or self.horizon < 1 or not 0.0 <= self.slip <= 1.0 or not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"a chain needs three states or more, a positive horizon, shares in [0, 1], got {self}")

    @property
    def name(self) -> str:
        return "chain"

    @property
    def spaces(self) -> Spaces:
        return Spaces(observation=self.states, action=2, discrete=True)

    def make(self, n: int, seed: int) -> Chains:
        return Chains(self, n, seed)

    @property
    def rewards(self) -> Array:
        """[states] of the state in which a step ends."""
        rewards = np.zeros(self.states)
        rewards[0], rewards[-1] = self.near, 1.0
        return rewards

    @property
    def transitions(self) -> Array:
        """[states, 2, states]."""
        here, row = np.arange(self.states), np.eye(self.states)
        left, right = row[np.maximum(here - 1, 0)], row[np.minimum(here + 1, self.states - 1)]
        return np.stack([(1.0 - self.slip) * a + self.slip * b for a, b in ((left, right), (right, left))], 1)

    def value(self, policy: Array) -> float:
        """The expected discounted return of a policy [states, 2]."""
        return self._backward(lambda q: (policy * q).sum(-1))

    @property
    def optimal_value(self) -> float:
        return self._backward(lambda q: q.max(-1))

    def _backward(self, value_of: Any) -> float:
        value, transitions, rewards = np.zeros(self.states), self.transitions, self.rewards
        for _ in range(self.horizon):
            value = value_of(transitions @ (rewards + self.gamma * value))
        return float(value[1])


class Chains(FixedHorizon):
    """n chains; ``observations`` [n, states] are one-hot."""

    def __init__(self, problem: Chain, n: int, seed: int) -> None:
        self.problem, self.rewards = problem, problem.rewards
        self.one_hot = np.eye(problem.states, dtype=np.float32)
        super().__init__(n, problem.horizon, seed)

    def start(self, rng: np.random.Generator) -> Array:
        self.slips = rng.random((self.horizon, self.n)) < self.problem.slip
        return np.asarray(self.one_hot[np.ones(self.n, np.int64)])

    def outcome(self, actions: Array) -> tuple[Array, Array]:
        """actions [n], 0 or 1."""
        moved = 2 * (actions ^ self.slips[self.age]) - 1
        state = np.clip(self.observations.argmax(1) + moved, 0, self.problem.states - 1)
        return self.one_hot[state], self.rewards[state]


def parse(text: str = "", *, episodes: int = 10) -> Chain:
    """``"states=8,slip=0.2"``, the fields of ``Chain`` → the problem."""
    readers = {field.name: type(field.default) for field in fields(Chain)}
    return Chain(**{"episodes": episodes, **read_options(text, readers, ",", "chain")})
