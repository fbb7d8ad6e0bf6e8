"""Lot sizing: which item each machine makes next, before the demand is known (the plant of arXiv 2504.05150).

A step has a known part and a random one. First the decision: a machine that changes its item pays a set-up cost and loses
capacity, what it makes goes into the inventory; a machine that idles loses its set-up. This is the post-decision state.
Then demand: what is missing is lost at a cost, what exceeds the storage is thrown away, what is left costs holding.

Axes: n plants side by side, I items, M machines. An action is, for each machine, 0 (idle) or an item 1 … I.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from policyopt.problems.control.environments import Array, Control, Spaces
from policyopt.problems.control.fixed_horizon import FixedHorizon
from policyopt.problems.language.base import choose, read_options

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Odds: TypeAlias = Mapping[int | float, float]


@dataclass(frozen=True, kw_only=True)
class Plant:
    """What stays the same: production, setup_cost, setup_loss [M, I]; lost_cost [I]; holding_cost and capacity of each
    item's storage. Demand for an item is Binomial(trials, probability)."""

    production: Ints
    setup_cost: Floats
    setup_loss: Ints
    lost_cost: Floats
    holding_cost: float
    capacity: int
    trials: int = 20
    probability: float = 0.4

    def decide(self, inventory: Ints, setup: Ints, actions: Ints) -> tuple[Ints, Ints, Floats]:
        """The known part of a step, f(s, a): inventory […, I], setup and actions […, M] → inventory, set-up, cost […].

        A loss of capacity above the production of a machine makes it produce nothing.
        """
        made = np.eye(self.production.shape[1] + 1, dtype=np.int64)[actions][..., 1:]
        changed = ((actions != 0) & (actions != setup))[..., None] * made
        output = np.maximum(made * self.production - changed * self.setup_loss, 0)
        return inventory + output.sum(-2), actions, (changed * self.setup_cost).sum((-1, -2))

    def serve(self, inventory: Ints, demand: Ints) -> tuple[Ints, Floats, Floats]:
        """The random part: inventory and demand […, I] → inventory, cost of lost sales and of holding […]."""
        left = inventory - demand
        kept = np.clip(left, 0, self.capacity)
        return kept, (np.maximum(-left, 0) * self.lost_cost).sum(-1), self.holding_cost * kept.sum(-1)


class Regime(NamedTuple):
    """What instances are drawn from. production: the most that a machine makes (0 with probability 0.4, else uniform from
    1); lost: costs of a lost sale, equally likely; setup_cost, setup_loss: their values and probabilities."""

    capacity: int
    production: int
    holding: float
    lost: tuple[float, ...]
    trials: int
    setup_cost: Odds
    setup_loss: Odds


REGIMES = {
    "mild": Regime(30, 12, 0.05, (1.0, 2.0, 3.0), 6, dict.fromkeys((1, 2, 3), 1 / 3), {1: 1.0}),
    "costly": Regime(
        100, 40, 0.01, (0.1, 1.1), 20, {15: 0.2, **dict.fromkeys(range(16, 31), 0.8 / 15)}, {1: 0.7, 2: 0.15, 3: 0.15}
    ),
}
"""``costly`` has the distributions of the published generator; in ``mild`` a change of the item costs little."""


def draw(regime: Regime, items: int, machines: int, seed: int) -> Plant:
    """A random instance."""
    rng, shape = np.random.default_rng(seed), (machines, items)
    output = rng.integers(1, regime.production + 1, shape) * (rng.random(shape) >= 0.4)
    costs, losses = (
        rng.choice(list(odds), shape, p=list(odds.values())) for odds in (regime.setup_cost, regime.setup_loss)
    )
    return Plant(
        production=output,
        setup_cost=costs.astype(np.float64),
        setup_loss=losses.astype(np.int64),
        lost_cost=rng.choice(regime.lost, items),
        holding_cost=regime.holding,
        capacity=regime.capacity,
        trials=regime.trials,
    )


def observe(inventory: Ints, setup: Ints, items: int) -> Array:
    """The state as numbers […, I + M I]: the inventory, and each machine's item as a one-hot row (zeros: none)."""
    rows = np.eye(items + 1, dtype=np.float32)[setup][..., 1:]
    return np.concatenate([inventory.astype(np.float32), rows.reshape(*rows.shape[:-2], -1)], -1)


def state_of(observations: Array, items: int) -> tuple[Ints, Ints]:
    """The inverse of ``observe``: inventory […, I] and set-up […, M]."""
    rows = observations[..., items:].reshape(*observations.shape[:-1], -1, items)
    return observations[..., :items].astype(np.int64), (rows @ np.arange(1, items + 1)).astype(np.int64)


class Plants(FixedHorizon):
    """n copies of a plant. Policies with the same seed meet the same demand, whatever they do."""

    CUT: ClassVar[bool] = True

    def __init__(self, plant: Plant, n: int, horizon: int, seed: int) -> None:
        self.plant = plant
        super().__init__(n, horizon, seed)

    def start(self, rng: np.random.Generator) -> Array:
        """Machines idle or are set up for an item that they can make."""
        plant, (machines, items) = self.plant, self.plant.production.shape
        chance = rng.random((self.n, machines, items + 1))
        chance[..., 1:][:, plant.production == 0] = -1.0
        self.demand = rng.binomial(plant.trials, plant.probability, (self.horizon, self.n, items))
        return observe(rng.integers(0, plant.capacity, (self.n, items)), chance.argmax(-1), items)

    def outcome(self, actions: Array) -> tuple[Array, Array]:
        """Actions [n, M], whole numbers from 0 to I; raises ValueError for others."""
        machines, items = self.plant.production.shape
        if actions.shape != (self.n, machines) or not (actions.min() >= 0 and actions.max() <= items):
            raise ValueError(
                f"lot-sizing: actions must be of shape {(self.n, machines)}, in 0 … {items}; got {actions}"
            )
        inventory, setup, cost = self.plant.decide(*state_of(self.observations, items), actions.astype(np.int64))
        inventory, lost, holding = self.plant.serve(inventory, self.demand[self.age])
        return observe(inventory, setup, items), -(cost + lost + holding)


@dataclass(frozen=True, kw_only=True)
class LotSizing(Control):
    """A random instance of a regime, ``mild`` or ``costly``; an episode is cut after ``horizon`` steps (the plant goes on,
    so that a critic bootstraps there). ``items=25, machines=15, horizon=100`` is the paper's size."""

    episodes: int = 20
    regime: str = "costly"
    items: int = 6
    machines: int = 3
    horizon: int = 50
    instance: int = 0

    def __post_init__(self) -> None:
        choose(self.regime, list(REGIMES), "lot-sizing: regime")
        if min(self.items, self.machines, self.horizon, self.episodes) < 1:
            raise ValueError(f"lot-sizing: items, machines, horizon and episodes must be positive, got {self}")

    @property
    def name(self) -> str:
        return "lot-sizing"

    @cached_property
    def plant(self) -> Plant:
        return draw(REGIMES[self.regime], self.items, self.machines, self.instance)

    @property
    def spaces(self) -> Spaces:
        observation, choices = self.items * (1 + self.machines), (self.items + 1,) * self.machines
        return Spaces(observation=observation, action=self.machines, discrete=True, choices=choices)

    def make(self, n: int, seed: int) -> Plants:
        return Plants(self.plant, n, self.horizon, seed)

    def post_decision(self, observations: Array, actions: Array) -> tuple[Array, Array]:
        """f(s, a) and its reward, minus the set-up cost: observations […, S], actions […, M] → post-decision observations
        […, S] and rewards […]."""
        inventory, setup, cost = self.plant.decide(*state_of(observations, self.items), actions)
        return observe(inventory, setup, self.items), -cost.astype(np.float32)


def parse(text: str = "") -> LotSizing:
    """``"regime=mild,items=25,machines=15"``, the fields of ``LotSizing`` → the problem."""
    readers = {field.name: type(field.default) for field in fields(LotSizing)}
    return LotSizing(**read_options(text, readers, ",", "lot-sizing"))
