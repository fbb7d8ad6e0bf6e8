"""A linear system with quadratic costs: the one control problem in which every linear policy has an exact value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize

from policyopt.problems.control.environments import Array, Control, Spaces
from policyopt.problems.control.fixed_horizon import FixedHorizon
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


class LinearSystems(FixedHorizon):
    """n systems; ``observations`` [n, 2] are (position, velocity)."""

    def start(self, rng: np.random.Generator) -> Array:
        start = rng.standard_normal((self.n, 2))
        self.noise = rng.standard_normal((self.horizon, self.n, 2))
        return start

    def outcome(self, actions: Array) -> tuple[Array, Array]:
        """actions [n, 1]. Raises ValueError where one isn't finite."""
        if not np.isfinite(actions).all():
            raise ValueError("lqr: an action is not finite: the policy broke down")
        state, force = self.observations.astype(np.float64), actions.astype(np.float64)
        rewards = -((state**2).sum(1) + LQR.PRICE * (force**2).sum(1))
        return state @ LQR.A.T + force @ LQR.B.T + LQR.NOISE * self.noise[self.age], rewards


def parse(text: str = "", *, episodes: int = 10) -> LQR:
    """``"horizon=50"``, the fields of ``LQR`` → the problem."""
    readers = {field.name: type(field.default) for field in fields(LQR)}
    return LQR(**{"episodes": episodes, **read_options(text, readers, ",", "lqr")})
