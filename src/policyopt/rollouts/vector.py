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

    def finished(self, rewards: Any, ended: Any) -> list[Any]:
        """The returns of the episodes that ended: rewards [T, N] or [T, N, K] and ``ended`` [T, N] of the last T steps."""
        returns, since = [], 0
        for t in np.flatnonzero(ended.any(1)):
            self.earned = self.earned + rewards[since : t + 1].sum(0, dtype=np.float64)
            returns.append(self.earned[ended[t]])
            self.earned[ended[t]] = 0.0
            since = int(t) + 1
        self.earned = self.earned + rewards[since:].sum(0, dtype=np.float64)
        return returns

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
        columns = self._steps(policy, environment, clock.generator("actions"))
        episodes = memory.finished(columns["rewards"], columns["terminated"] | columns["truncated"])
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

    def _steps(self, policy: Any, environment: Any, rng: torch.Generator) -> dict[str, Any]:
        """Each column [T, N, …], an array or (what the policy gave) a tensor.

        A policy that can ``play`` says afterwards how likely its actions were; others ``act`` and record it.
        """
        seen, chosen, recorded, results = [], [], [], []
        play = getattr(policy, "play", None)
        for _ in range(self.steps):
            seen.append(environment.observations)
            observations = torch.from_numpy(environment.observations)
            if play is None:
                actions, notes, _ = policy.act(observations, None, rng)
                recorded.append(notes)
            else:
                actions = play(observations, rng)
            chosen.append(actions)
            results.append(environment.step(actions.cpu().numpy()))
        notes = {name: torch.stack([one[name] for one in recorded]) for name in (recorded[0] if recorded else ())}
        given = zip(results[0]._fields, map(np.stack, zip(*results, strict=True)), strict=True)
        return {"observations": np.stack(seen), "actions": torch.stack(chosen), **notes, **dict(given)}


@torch.no_grad()
def _recorded(batch: Rollouts, policy: Any) -> Rollouts:
    if batch.behaviour_logp is not None:
        return batch
    outputs = policy.evaluate(batch, ("logp", "entropy"))
    return batch.replace(behaviour_logp=outputs.logp, entropy=outputs.entropy)


def _rollouts(columns: dict[str, Any], gamma: float, device: torch.device) -> Rollouts:
    """Columns [T, N, …] as rows [N, T, …]."""
    rows: dict[str, Any] = {
        name: torch.as_tensor(column).transpose(0, 1).contiguous().to(device) for name, column in columns.items()
    }
    terminated = rows["terminated"]
    return Rollouts(
        **rows,
        mask=torch.ones_like(terminated),
        discount=gamma * (~terminated).float(),
        batch_size=[len(terminated)],
    )
