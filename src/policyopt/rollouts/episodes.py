"""The collector of whole episodes: each call begins anew, so that a row is one trajectory of the present policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from policyopt.rollouts.vector import Vector
from policyopt.types import Clock, Collected, Collector, Rollouts


@dataclass(frozen=True, kw_only=True)
class Episodes(Collector):
    """``episodes`` from fresh start states, side by side → Rollouts [N, T], T the longest of them.

    ``mask`` is False behind a row's end. ``discount`` is ``gamma``, and 0 where the episode terminated and behind its end.
    An episode without an end is cut after ``limit`` steps. Nothing is kept between calls; start states and actions are
    drawn from ``stream``, so that several collections of one step differ. Raises ValueError for sizes that make no sense.
    """

    gives: ClassVar[tuple[str, ...]] = Vector.gives
    episodes: int = 1
    gamma: float = 0.99
    limit: int = 1000
    stream: str = "episodes"

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.limit < 1 or not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"episodes and limit must be positive and gamma in [0, 1], got {self}")

    def __call__(self, policy: Any, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        rng = clock.generator(self.stream)
        environment = problem.make(self.episodes, int(torch.randint(2**31, (), generator=rng)))
        standardization = getattr(policy, "standardization", None)
        if standardization is not None:
            standardization.refresh()
        batch = self._played(policy, environment, rng).to(policy.device)
        if standardization is not None:
            standardization.observe(batch.observations[batch.mask])
        metrics: dict[str, Tensor | float] = {
            "episode/return": batch.rewards.sum(1).mean(),
            "episode/length": batch.mask.sum(1).float().mean(),
            "policy/entropy": batch.entropy[batch.mask].mean(),
            "cost/env_steps": float(batch.mask.sum()),
        }
        return Collected({"rollouts": batch}, metrics)

    def _played(self, policy: Any, environment: Any, rng: torch.Generator) -> Rollouts:
        columns: dict[str, list[Tensor]] = {name: [] for name in ("mask", "actions", *self.gives) if name != "discount"}
        alive = np.ones(self.episodes, bool)
        while alive.any() and len(columns["mask"]) < self.limit:
            observations = torch.from_numpy(environment.observations)
            actions, recorded, _ = policy.act(observations, None, rng)
            result = environment.step(actions.cpu().numpy())
            seen = {"mask": torch.from_numpy(alive), "observations": observations, "actions": actions, **recorded}
            seen |= {name: torch.from_numpy(array) for name, array in result._asdict().items()}
            for name, values in columns.items():
                values.append(seen[name])
            alive = alive & ~(result.terminated | result.truncated)
        stacked: dict[str, Any] = {name: torch.stack(values, 1) for name, values in columns.items()}
        mask = stacked["mask"]
        terminated, truncated = stacked["terminated"] & mask, stacked["truncated"] & mask
        truncated[:, -1] |= torch.from_numpy(alive)
        stacked |= {"rewards": stacked["rewards"] * mask, "terminated": terminated, "truncated": truncated}
        return Rollouts(**stacked, discount=self.gamma * (mask & ~terminated), batch_size=[self.episodes])
