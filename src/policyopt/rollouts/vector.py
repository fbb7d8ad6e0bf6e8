"""The collector of control: T steps of N environments that run side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from policyopt.types import Clock, Collected, Collector, Rollouts


class Running:
    """The environments between two collections, and what their episodes have earned so far."""

    def __init__(self) -> None:
        self.environment: Any = None
        self.earned: Any = 0.0
        self._saved: dict[str, Any] | None = None

    def start(self, problem: Any, count: int, seed: int) -> Any:
        """The environments, made at the first call and brought to where a loaded state left them."""
        if self.environment is None:
            if not hasattr(problem, "make"):
                raise ValueError(
                    f"{getattr(problem, 'name', problem)!r} has no environments to play in: this method needs a control "
                    "problem, such as gym:CartPole-v1 (--problem)"
                )
            self.environment = problem.make(count, seed)
        if self._saved is not None:
            self.environment.load_state_dict(self._saved["environment"])
            self.earned, self._saved = self._saved["earned"].numpy().copy(), None
        return self.environment

    def state_dict(self) -> dict[str, Any]:
        if self._saved is not None or self.environment is None:
            return self._saved or {}
        return {"environment": self.environment.state_dict(), "earned": torch.from_numpy(self.earned.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = state or None


@dataclass(frozen=True, kw_only=True)
class Vector(Collector):
    """``steps`` of each of ``environments``, which go on where the last collection left them → Rollouts [N, T].

    ``discount`` is ``gamma``, 0 where an episode terminated; where one is cut by a limit it is ``gamma``, and
    ``next_observations`` holds the state in which it was cut.
    """

    gives: ClassVar[tuple[str, ...]] = (
        "behaviour_logp",
        "entropy",
        "rewards",
        "discount",
        "terminated",
        "truncated",
        "observations",
        "next_observations",
    )
    environments: int = 8
    steps: int = 256
    gamma: float = 0.99

    def __post_init__(self) -> None:
        if self.environments < 1 or self.steps < 1 or not 0 <= self.gamma <= 1:
            raise ValueError(f"environments and steps must be positive and gamma in [0, 1], got {self}")

    def memory(self) -> Running:
        return Running()

    def __call__(self, policy: Any, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        environment = memory.start(problem, self.environments, clock.seed)
        standardization = getattr(policy, "standardization", None)
        if standardization is not None:
            standardization.refresh()
        columns, episodes = self._steps(policy, environment, memory, clock.generator("actions"))
        batch = _recorded(_rollouts(columns, self.gamma, policy.device), policy)
        if standardization is not None:
            standardization.observe(batch.observations)
        metrics: dict[str, Tensor | float] = {
            "reward/mean": batch.rewards.mean(),
            "policy/entropy": batch.entropy.mean(),
            "cost/env_steps": float(self.environments * self.steps),
        }
        if episodes:
            metrics["episode/return"] = float(np.concatenate(episodes).mean(0).sum())
        return Collected({"rollouts": batch}, metrics)

    def _steps(
        self, policy: Any, environment: Any, memory: Running, rng: torch.Generator
    ) -> tuple[dict[str, list[Any]], list[Any]]:
        """Lists over time of each column [N, …], and the returns of the episodes that ended.

        A policy that can ``play`` says afterwards how likely its actions were; others ``act`` and record it.
        """
        columns: dict[str, list[Any]] = {}
        episodes = []
        play = getattr(policy, "play", None)
        for _ in range(self.steps):
            seen, recorded = environment.observations, dict[str, Tensor]()
            if play is None:
                actions, recorded, _ = policy.act(torch.from_numpy(seen), None, rng)
            else:
                actions = play(torch.from_numpy(seen), rng)
            result = environment.step(actions.cpu().numpy())
            step = {"observations": seen, "actions": actions, **recorded, **result._asdict()}
            for name, value in step.items():
                columns.setdefault(name, []).append(value)
            ended = result.terminated | result.truncated
            memory.earned = memory.earned + result.rewards.astype(np.float64)
            if ended.any():
                episodes.append(memory.earned[ended])
                memory.earned[ended] = 0.0
        return columns, episodes


@torch.no_grad()
def _recorded(batch: Rollouts, policy: Any) -> Rollouts:
    if batch.behaviour_logp is not None:
        return batch
    outputs = policy.evaluate(batch, ("logp", "entropy"))
    return batch.replace(behaviour_logp=outputs.logp, entropy=outputs.entropy)


def _rollouts(columns: dict[str, list[Any]], gamma: float, device: torch.device) -> Rollouts:
    stacked: dict[str, Any] = {name: _stacked(values).to(device) for name, values in columns.items()}
    terminated = stacked["terminated"]
    return Rollouts(
        **stacked,
        mask=torch.ones_like(terminated),
        discount=gamma * (~terminated).float(),
        batch_size=[len(terminated)],
    )


def _stacked(values: list[Any]) -> Tensor:
    """Arrays or tensors [N, …] over time → [N, T, …]."""
    return torch.stack(values, 1) if isinstance(values[0], Tensor) else torch.from_numpy(np.stack(values, 1))
