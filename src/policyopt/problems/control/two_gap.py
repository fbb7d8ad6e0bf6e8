"""Two gaps: a point mass behind a wall with two ways through, one of which demonstrations take to the wrong place.

The unit square with a wall at x = 0.5, open for y in [0.75, 0.85] and [0.15, 0.25]. An episode starts near (0.1, 0.5)
and ends within 0.07 of the goal (0.9, 0.8), or is cut after 50 steps. Reward: −1 a step, 0 for the step that reaches
the goal. Without demonstrations the goal is as good as never found: chance alone doesn't pass a gap.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from policyopt.problems.control.environments import Act, Array, Control, Spaces, Transition
from policyopt.problems.language.base import read_options
from policyopt.types import Transitions

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]

WALL = 0.5
GAPS = np.array([[0.75, 0.85], [0.15, 0.25]])
START, SPREAD = np.array([0.1, 0.5]), 0.02
GOAL, RADIUS = np.array([0.9, 0.8]), 0.07
STRIDE = 0.05
HORIZON = 50


def move(position: Floats, action: Floats) -> Floats:
    """Positions [N, 2] after actions [N, 2] in [-1, 1]; a move through the wall keeps its x and slides along."""
    target = np.clip(position + STRIDE * np.clip(action, -1.0, 1.0), 0.0, 1.0)
    before, after = position[:, 0] - WALL, target[:, 0] - WALL
    crosses = (before < 0.0) != (after < 0.0)
    share = before / np.where(crosses, before - after, 1.0)
    height = position[:, 1] + share * (target[:, 1] - position[:, 1])
    is_open = ((GAPS[:, :1] <= height) & (height <= GAPS[:, 1:])).any(0)
    target[:, 0] = np.where(crosses & ~is_open, position[:, 0], target[:, 0])
    return target


def observe(position: Floats) -> Array:
    """Positions [N, 2] in the unit square → observations in [-1, 1]."""
    return (2.0 * position - 1.0).astype(np.float32)


class TwoGapEnvironments:
    """n point masses side by side; ``observations`` [n, 2] are positions in [−1, 1]².

    Starts are drawn from (seed, number of draws so far), so that the state is a few numbers.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.seed, self.draws = seed, 0
        self.position = self._starts(n)
        self.elapsed = np.zeros(n, np.int64)
        self.observations = observe(self.position)

    def step(self, actions: Array) -> Transition:
        """Actions [n, 2]; raises ValueError for another shape or a number that isn't finite."""
        if actions.shape != self.position.shape or not np.isfinite(actions).all():
            raise ValueError(f"two-gap: expected finite actions of shape {self.position.shape}, got {actions.shape}")
        reached = move(self.position, actions.astype(np.float64))
        self.elapsed += 1
        terminated = ((reached - GOAL) ** 2).sum(1) <= RADIUS**2
        truncated = ~terminated & (self.elapsed >= HORIZON)
        self._begin(reached, terminated | truncated)
        return Transition(observe(reached), terminated.astype(np.float32) - 1.0, terminated, truncated)

    def _begin(self, reached: Floats, done: Flags) -> None:
        self.position = np.where(done[:, None], self._starts(len(done)), reached) if done.any() else reached
        self.elapsed[done] = 0
        self.observations = observe(self.position)

    def _starts(self, count: int) -> Floats:
        self.draws += 1
        rng = np.random.default_rng([self.seed, self.draws])
        return np.asarray(START + rng.uniform(-SPREAD, SPREAD, (count, 2)))

    def state_dict(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "draws": self.draws,
            "position": torch.from_numpy(self.position.copy()),
            "elapsed": torch.from_numpy(self.elapsed.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed, self.draws = state["seed"], state["draws"]
        self.position, self.elapsed = state["position"].numpy().copy(), state["elapsed"].numpy().copy()
        self.observations = observe(self.position)


def scripted_action(position: Floats, height: Floats) -> Floats:
    """Up or down to the gap's ``height`` [N] first, then through it to (0.9, height), where it stays."""
    aligned = np.abs(position[:, 1] - height) < 0.03
    target = np.stack((np.where(aligned, GOAL[0], START[0]), height), axis=1)
    return np.clip((target - position) / STRIDE, -1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class TwoGap(Control):
    """The problem, with scripted demonstrations as its data.

    Of ``demonstrated`` episodes the share ``good`` takes the upper gap to the goal; the rest takes the lower one and
    stays at (0.9, 0.2) to the end. Their actions carry Gaussian noise of deviation ``noise``. ``good=0`` shows nothing
    that leads to the goal: there, choosing among what was demonstrated cannot help. Raises ValueError on impossible
    settings.
    """

    episodes: int = 100
    good: float = 0.5
    demonstrated: int = 200
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.good <= 1.0:
            raise ValueError(f"good is the share of demonstrations that reach the goal, from 0 to 1, got {self.good}")
        if self.demonstrated < 1 or self.episodes < 1 or self.noise < 0.0:
            raise ValueError(
                "demonstrated and episodes must be positive and noise not negative, got "
                f"{self.demonstrated}, {self.episodes} and {self.noise}"
            )

    @property
    def name(self) -> str:
        return "two-gap"

    @property
    def spaces(self) -> Spaces:
        return Spaces(observation=2, action=2, discrete=False)

    def make(self, n: int, seed: int) -> TwoGapEnvironments:
        return TwoGapEnvironments(n, seed)

    def transitions(self) -> Transitions:
        """The demonstrations, episode steps in the order of time, all episodes side by side."""
        environments = self.make(self.demonstrated, self.seed)
        rng = np.random.default_rng([self.seed, 0])
        height = np.where(np.arange(self.demonstrated) < round(self.good * self.demonstrated), GOAL[1], 1.0 - GOAL[1])
        alive, columns = np.ones(self.demonstrated, bool), list[tuple[Any, ...]]()
        for _ in range(HORIZON):
            before = environments.observations
            intended = scripted_action(environments.position, height)
            action = np.clip(intended + rng.normal(0.0, self.noise, intended.shape), -1.0, 1.0)
            step = environments.step(action)
            seen = (before, action.astype(np.float32), step.rewards, step.next_observations, step.terminated)
            columns.append(tuple(column[alive] for column in seen))
            alive = alive & ~(step.terminated | step.truncated)
        stacked = [torch.from_numpy(np.concatenate(column)) for column in zip(*columns, strict=True)]
        return Transitions(*stacked, batch_size=[len(stacked[0])])

    def evaluate(self, act: Act, rng: torch.Generator) -> dict[str, float]:
        """Mean return and share of successes of ``episodes`` episodes, actions sampled."""
        environments = self.make(self.episodes, int(torch.randint(2**31, (), generator=rng, device=rng.device)))
        alive = np.ones(self.episodes, bool)
        reached, returns, memory = ~alive, np.zeros(self.episodes), None
        for _ in range(HORIZON):
            action, _, memory = act(torch.from_numpy(environments.observations), memory, rng, False)
            step = environments.step(action.cpu().numpy())
            returns += alive * step.rewards
            reached |= alive & step.terminated
            alive = alive & ~(step.terminated | step.truncated)
        return {"eval/return": float(returns.mean()), "eval/success": float(reached.mean())}


def parse(text: str = "") -> TwoGap:
    """``"good=0.25,seed=1"``, the fields of ``TwoGap`` → the problem."""
    readers: dict[str, Any] = {field.name: type(field.default) for field in fields(TwoGap)}
    return TwoGap(**read_options(text, readers, ",", "two-gap"))
