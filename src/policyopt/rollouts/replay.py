"""Replay: what off-policy learners remember, and how they add to it by acting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policyopt.problems.control.environments import VectorEnvironment
from policyopt.rollouts.vector import Running
from policyopt.types import Clock, Collected, Collector, Transitions

COLUMNS = ("observation", "action", "reward", "next_observation", "terminated", "cost", "weight", "behaviour_logp")


class Replay:
    """The last ``capacity`` transitions in columns that are allocated once; the first to come are the first to go.

    The columns are those of the first transitions added. Raises ValueError where later ones have others. Sampling is
    uniform, or by the weights that ``weigh`` was given.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a replay memory needs room for at least one transition, got {capacity}")
        self.capacity, self.added = capacity, 0
        self.columns: dict[str, Tensor] = {}
        self.cumulative: Tensor | None = None

    @classmethod
    def of(cls, data: Transitions) -> Replay:
        """A memory full of ``data``, whose columns are used as they are: what is mapped from disk stays there."""
        made = cls(len(data))
        made.columns = _columns(data)
        made.added = len(data)
        return made

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, batch: Transitions) -> None:
        """Append transitions, batch size [N] with N at most the capacity."""
        new = _columns(batch)
        if len(batch) > self.capacity:
            raise ValueError(f"{len(batch)} transitions at once do not fit into a replay memory of {self.capacity}")
        if not self.columns:
            self._allocate(new)
        if new.keys() != self.columns.keys():
            raise ValueError(f"the replay memory has the columns {', '.join(self.columns)}; got {', '.join(new)}")
        start = self.added % self.capacity
        room = self.capacity - start
        for name, column in new.items():
            kept = self.columns[name]
            kept[start : start + len(batch)] = column[:room]
            if len(batch) > room:
                kept[: len(batch) - room] = column[room:]
        self.added += len(batch)

    def _allocate(self, like: Mapping[str, Tensor]) -> None:
        self.columns = {name: column.new_empty((self.capacity, *column.shape[1:])) for name, column in like.items()}

    def weigh(self, weights: Tensor) -> None:
        """From now on row i is drawn in proportion to weights[i]; [N] for all that the memory holds."""
        if weights.shape != (len(self),) or not bool((torch.isfinite(weights) & (weights >= 0.0)).all()):
            raise ValueError(f"expected {len(self)} finite weights of 0 or more, got {tuple(weights.shape)}")
        self.cumulative = weights.double().cumsum(0)
        if not float(self.cumulative[-1]) > 0.0:
            raise ValueError("all weights are zero: nothing could be drawn")

    def _rows(self, count: int, rng: torch.Generator) -> Tensor:
        if self.cumulative is None:
            return torch.randint(len(self), (count,), generator=rng)
        point = torch.rand(count, generator=rng, dtype=torch.float64) * self.cumulative[-1]
        return torch.searchsorted(self.cumulative, point, right=True).clamp(max=len(self) - 1)

    def sample(self, count: int, rng: torch.Generator) -> Transitions:
        """``count`` transitions with replacement."""
        if not self.added:
            raise ValueError("nothing has been added to the replay memory yet")
        index = self._rows(count, rng)
        drawn: dict[str, Any] = {name: column[index] for name, column in self.columns.items()}
        return Transitions(**drawn, batch_size=[count])

    def state_dict(self) -> dict[str, Any]:
        return {"added": self.added, "columns": {k: column[: len(self)].clone() for k, column in self.columns.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.added = state["added"]
        self._allocate(state["columns"])
        for name, column in state["columns"].items():
            self.columns[name][: len(self)] = column


def _columns(batch: Transitions) -> dict[str, Tensor]:
    return {name: column for name in COLUMNS if (column := getattr(batch, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class Interaction(Collector):
    """``steps`` steps of ``environments`` environments side by side, as transitions.

    Until ``warm_up`` environment steps are spent, the policy's ``warm_up`` acts in the place of its ``act``. What
    either returns as columns replaces or adds to what is remembered. Raises ValueError for counts that make no sense.
    """

    environments: int = 1
    steps: int = 1
    warm_up: int = 5000

    def __post_init__(self) -> None:
        if min(self.environments, self.steps) < 1 or self.warm_up < 0:
            raise ValueError(f"environments and steps must be positive and warm_up not negative, got {self}")

    def memory(self) -> Running:
        return Running()

    def warming_up(self, clock: Clock) -> bool:
        return clock.spent.get("env_steps", 0.0) < self.warm_up

    def __call__(self, policy: Any, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        environment, rng = memory.start(problem, self.environments, clock.seed), clock.generator("interaction")
        act = policy.warm_up if self.warming_up(clock) else policy.act
        episodes: list[Any] = []
        steps = [self._step(act, environment, memory, episodes, rng) for _ in range(self.steps)]
        columns: dict[str, Any] = {name: torch.cat([step[name] for step in steps]) for name in steps[0]}
        count = self.steps * self.environments
        batch = Transitions(**columns, batch_size=[count])
        metrics: dict[str, Tensor | float] = {"reward/mean": columns["reward"].mean(), "cost/env_steps": float(count)}
        if episodes:
            metrics["episode/return"] = float(np.concatenate(episodes).mean())
        return Collected({"transitions": batch}, metrics)

    def _step(
        self, act: Any, environment: VectorEnvironment, running: Running, episodes: list[Any], rng: torch.Generator
    ) -> dict[str, Tensor]:
        """The columns of one step of each environment; the returns of episodes that it ended are added to ``episodes``."""
        observation = torch.from_numpy(environment.observations)
        action, columns, _ = act(observation, None, rng)
        result = environment.step(action.numpy())
        ended = result.terminated | result.truncated
        running.earned = running.earned + result.rewards.astype(np.float64)
        if ended.any():
            episodes.append(running.earned[ended])
            running.earned[ended] = 0.0
        return {
            "observation": observation,
            "action": action,
            "reward": torch.from_numpy(result.rewards),
            "next_observation": torch.from_numpy(result.next_observations),
            "terminated": torch.from_numpy(result.terminated),
            **columns,
        }
