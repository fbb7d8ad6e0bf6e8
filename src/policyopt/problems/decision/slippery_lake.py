"""A slippery lake: an intended move, then perhaps a slip in a direction that depends on the tile (arXiv 2504.05150).

A step has a known part, the intended move, and a random one: with probability 0.5 the walker slips once more, in a
direction drawn from the tile's own distribution. Each of the two moves earns 1 / (1 + Manhattan distance to the goal), so 1
at the goal. Goal and holes end the episode, after the intended move as well; a hole costs 1 / (rows + columns). Rewards are
positive: it pays to stay near the goal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from policyopt.problems.control.environments import Array, Control, Spaces, Transition
from policyopt.problems.language.base import read_options

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

MOVES = np.array([[0, -1], [1, 0], [0, 1], [-1, 0]])  # left, down, right, up
SLIP = 0.5
HOLES = 0.2  # the share of tiles


@dataclass(frozen=True, kw_only=True)
class Map:
    """following [C, 4]: the cell after a move (the border holds); hole, goal [C]; slips [C, 4]: the probabilities of the
    directions; distance [C] to the goal, the last cell. The first one is the start."""

    following: Ints
    hole: Flags
    slips: Floats
    distance: Ints

    def reachable(self) -> bool:
        """Whether a way leads from the start to the goal."""
        seen = np.zeros(len(self.hole), bool)
        seen[0] = True
        for _ in range(len(seen)):
            seen[self.following[seen & ~self.hole].ravel()] = True
        return bool(seen[-1])

    def reward(self, cell: Ints) -> Floats:
        """1 / (1 + distance to the goal) of cells […]."""
        return np.asarray(1.0 / (1.0 + self.distance[cell]))

    def ends(self, cell: Ints) -> Flags:
        return np.asarray(self.hole[cell] | (self.distance[cell] == 0))


def draw(size: int, seed: int) -> Map:
    """The first of random maps in which the goal can be reached."""
    return next(made for made in _maps(size, np.random.default_rng(seed)) if made.reachable())


def _maps(size: int, rng: np.random.Generator) -> Iterator[Map]:
    places = np.stack(np.divmod(np.arange(size**2), size), 1)
    moved = np.clip(places[:, None] + MOVES, 0, size - 1)
    while True:
        hole = rng.random(size**2) < HOLES
        hole[[0, -1]] = False
        yield Map(
            following=moved @ np.array([size, 1]),
            hole=hole,
            slips=rng.dirichlet(np.ones(4), size**2),
            distance=(size - 1 - places).sum(1),
        )


class Walkers:
    """n walkers on one map. What chance does at a step is drawn from (seed, number of the step), whatever they do."""

    def __init__(self, lake: Map, n: int, horizon: int, seed: int) -> None:
        self.map, self.horizon, self.seed, self.draws = lake, horizon, seed, 0
        self.cell, self.elapsed = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.penalty = 0.5 * len(lake.hole) ** -0.5

    @property
    def observations(self) -> Array:
        return observe(self.cell, len(self.map.hole))

    def step(self, actions: Array) -> Transition:
        """Actions [n] in 0 … 3; raises ValueError for others."""
        if actions.shape != self.cell.shape or not (actions.min() >= 0 and actions.max() <= 3):
            raise ValueError(f"slippery-lake: actions must be of shape {self.cell.shape}, in 0 … 3; got {actions}")
        lake, intended = self.map, self.map.following[self.cell, actions]
        slips, direction = self._chance(intended)
        reached = np.where(slips, lake.following[intended, direction], intended)
        rewards = lake.reward(intended) + slips * lake.reward(reached) - self.penalty * lake.hole[reached]
        self.elapsed += 1
        terminated = lake.ends(reached)
        truncated = ~terminated & (self.elapsed >= self.horizon)
        ended = terminated | truncated
        self.cell, self.elapsed = np.where(ended, 0, reached), np.where(ended, 0, self.elapsed)
        return Transition(observe(reached, len(lake.hole)), rewards.astype(np.float32), terminated, truncated)

    def _chance(self, intended: Ints) -> tuple[Flags, Ints]:
        """Who slips [n], and where to [n]."""
        rng = np.random.default_rng([self.seed, self.draws])
        self.draws += 1
        slips, level = rng.random((2, len(intended)))
        direction = (self.map.slips[intended].cumsum(1)[:, :3] <= level[:, None]).sum(1)
        return (slips < SLIP) & ~self.map.ends(intended), direction

    def state_dict(self) -> dict[str, Any]:
        arrays = {"cell": self.cell, "elapsed": self.elapsed}
        return {"draws": self.draws, **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.draws = state["draws"]
        self.cell, self.elapsed = state["cell"].numpy().copy(), state["elapsed"].numpy().copy()


def observe(cell: Ints, cells: int) -> Array:
    """Cells […] as one-hot rows […, C]."""
    return np.eye(cells, dtype=np.float32)[cell]


@dataclass(frozen=True, kw_only=True)
class SlipperyLake(Control):
    """A random map of ``size``², the same for the same ``instance``; an episode is cut after ``horizon`` steps."""

    episodes: int = 20
    size: int = 6
    horizon: int = 50
    instance: int = 0

    def __post_init__(self) -> None:
        if self.size < 2 or min(self.horizon, self.episodes) < 1:
            raise ValueError(f"slippery-lake: size must be at least 2, horizon and episodes positive, got {self}")

    @property
    def name(self) -> str:
        return "slippery-lake"

    @cached_property
    def map(self) -> Map:
        return draw(self.size, self.instance)

    @property
    def spaces(self) -> Spaces:
        return Spaces(observation=self.size**2, action=4, discrete=True)

    def make(self, n: int, seed: int) -> Walkers:
        return Walkers(self.map, n, self.horizon, seed)

    def post_decision(self, observations: Array, actions: Array) -> tuple[Array, Array]:
        """f(s, a), the intended cell, and its reward: observations […, S], actions […] → […, S] and […]."""
        intended = self.map.following[observations.argmax(-1), actions]
        return observe(intended, self.size**2), self.map.reward(intended).astype(np.float32)


def parse(text: str = "") -> SlipperyLake:
    """``"size=8,instance=3"``, the fields of ``SlipperyLake`` → the problem."""
    readers = {field.name: type(field.default) for field in fields(SlipperyLake)}
    return SlipperyLake(**read_options(text, readers, ",", "slippery-lake"))
