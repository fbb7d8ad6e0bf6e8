"""A linear system with quadratic costs: the one control problem in which every linear policy has an exact value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.optimize import minimize

from policyopt.problems.control.environments import Array, Control, Spaces, Transition
from policyopt.problems.language.base import read_options


@dataclass(frozen=True, kw_only=True)
class LQR(Control):
    """A double integrator: s' = A s + B u + 0.05 N(0, I) with A = [[1, 0.1], [0, 1]] and B = (0, 0.1).

    Reward −(|s|² + 0.1 u²) of the state in which u was applied; s₀ ~ N(0, I); ``horizon`` steps. Actions have no bounds.
    ``gamma`` is the discount of ``value``. Raises ValueError for sizes that make no sense.
    """

    A: ClassVar[Array] = np.array([[1.0, 0.1], [0.0, 1.0]])
    B: ClassVar[Array] = np.array([[0.0], [0.1]])
    PRICE: ClassVar[float] = 0.1
    NOISE: ClassVar[float] = 0.05

    horizon: int = 20
    gamma: float = 0.95

    def __post_init__(self) -> None:
        if self.horizon < 1 or self.episodes < 1 or not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"horizon and episodes must be positive and gamma in [0, 1], got {self}")

    @property
    def name(self) -> str:
        return "lqr"

    @property
    def spaces(self) -> Spaces:
        return Spaces(observation=2, action=1, discrete=False, low=(-np.inf,), high=(np.inf,))

    def make(self, n: int, seed: int) -> LinearSystems:
        return LinearSystems(n, self.horizon, seed)

    def value(self, gain: Array, deviation: float) -> float:
        """The expected discounted return of u ~ N(gain · s, deviation²), gain [2], by the recursion of E[s sᵀ]."""
        gain = np.asarray(gain, np.float64).reshape(1, 2)
        closed = self.A + self.B @ gain
        added = deviation**2 * self.B @ self.B.T + self.NOISE**2 * np.eye(2)
        cost = np.eye(2) + self.PRICE * gain.T @ gain
        moment, total, factor = np.eye(2), 0.0, 1.0
        for _ in range(self.horizon):
            total -= factor * (np.sum(cost * moment) + self.PRICE * deviation**2)
            moment, factor = closed @ moment @ closed.T + added, factor * self.gamma
        return float(total)

    def optimal_gain(self, deviation: float) -> Array:
        """The gain [2] of the largest value among all that don't change with time."""
        found = minimize(lambda gain: -self.value(gain, deviation), np.zeros(2), method="BFGS")
        return np.asarray(found.x)


class LinearSystems:
    """n systems; ``observations`` [n, 2] are (position, velocity). All episodes begin and end together."""

    def __init__(self, n: int, horizon: int, seed: int) -> None:
        self.n, self.horizon, self.seed = n, horizon, seed
        self.episode, self.age = 0, 0
        self.observations = self._start()

    def _start(self) -> Array:
        """Draws the whole episode's noise: a saved state needs the number of the episode alone."""
        rng = np.random.default_rng([self.seed, self.episode])
        start, self.noise = rng.standard_normal((self.n, 2)), rng.standard_normal((self.horizon, self.n, 2))
        return start.astype(np.float32)

    def step(self, actions: Array) -> Transition:
        """actions [n, 1]. Raises ValueError where one isn't finite."""
        if not np.isfinite(actions).all():
            raise ValueError("lqr: an action is not finite: the policy broke down")
        state, force = self.observations.astype(np.float64), actions.astype(np.float64)
        rewards = -((state**2).sum(1) + LQR.PRICE * (force**2).sum(1))
        following = (state @ LQR.A.T + force @ LQR.B.T + LQR.NOISE * self.noise[self.age]).astype(np.float32)
        self.age += 1
        self.observations = following
        ended = np.full(self.n, self.age == self.horizon)
        if self.age == self.horizon:
            self.age, self.episode = 0, self.episode + 1
            self.observations = self._start()
        return Transition(following, rewards.astype(np.float32), ended, np.zeros(self.n, bool))

    def state_dict(self) -> dict[str, Any]:
        return {"episode": self.episode, "age": self.age, "observations": torch.from_numpy(self.observations.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episode, self.age = state["episode"], state["age"]
        self._start()
        self.observations = state["observations"].numpy().copy()


def parse(text: str = "", *, episodes: int = 10) -> LQR:
    """``"horizon=50"``, the fields of ``LQR`` → the problem."""
    readers = {field.name: type(field.default) for field in fields(LQR)}
    return LQR(**{"episodes": episodes, **read_options(text, readers, ",", "lqr")})
