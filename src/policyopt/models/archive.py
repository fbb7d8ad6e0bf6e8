"""A set of policies that stands for a Pareto front, and acts as one policy that is told a preference."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policyopt.objectives.pareto import Front, crowding_distance, non_dominated


@dataclass
class Candidate:
    """A policy's return vector [K], the policy, and the state from which its training can go on."""

    returns: Front
    policy: Any
    state: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        return {"returns": torch.from_numpy(self.returns), "policy": self.policy.state_dict(), "training": self.state}


class Archive:
    """Candidates none of which dominates another, at most ``capacity`` of them: the least crowded ones.

    A vector that does not exceed the reference point [K] in every objective is not taken (None: all are). ``start``: the
    policy that acts as long as there is no candidate.
    """

    def __init__(self, start: Any, objectives: int, capacity: int, reference: tuple[float, ...] | None = None) -> None:
        if reference is not None and len(reference) != objectives:
            raise ValueError(f"the reference point needs {objectives} numbers, got {reference}")
        self.start, self.objectives, self.capacity, self.reference = start, objectives, capacity, reference
        self.candidates: list[Candidate] = []

    @property
    def device(self) -> torch.device:
        found: torch.device = self.start.device
        return found

    @property
    def front(self) -> Front:
        """The return vectors [F, K]."""
        return np.array([c.returns for c in self.candidates]).reshape(-1, self.objectives)

    def insert(self, returns: Front, policy: Any, state: Callable[[], dict[str, Any]]) -> bool:
        """Takes the policy (a copy of it, and of ``state()``) where no candidate dominates or equals it."""
        if self.reference is not None and not (returns > np.asarray(self.reference)).all():
            return False
        kept = non_dominated(np.vstack([self.front, returns]))
        if not kept[-1]:
            return False
        self.candidates = [c for c, keep in zip(self.candidates, kept, strict=False) if keep]
        self.candidates.append(Candidate(returns.copy(), policy.frozen_copy(), deepcopy(state())))
        if len(self.candidates) > self.capacity:
            del self.candidates[int(crowding_distance(self.front).argmin())]
        return True

    def act(
        self, observation: Tensor, memory: Tensor | None, rng: torch.Generator, greedy: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Each row acts with the candidate that maximises preference · returns.

        ``memory`` holds the preferences [N, K]; None draws them uniformly from the simplex.
        """
        if memory is None:
            drawn = torch.rand(len(observation), self.objectives, generator=rng, device=rng.device).cpu()
            memory = drawn.log() / drawn.log().sum(1, keepdim=True)
        if not self.candidates:
            return *self.start.act(observation, None, rng, greedy)[:2], memory
        chosen = (memory.double() @ torch.from_numpy(self.front).T).argmax(1)
        parts = {}
        for i in chosen.unique().tolist():
            rows = (chosen == i).nonzero()[:, 0]
            actions, columns, _ = self.candidates[i].policy.act(observation[rows], None, rng, greedy)
            parts[i] = (rows, {"actions": actions, **columns})
        order = torch.cat([rows for rows, _ in parts.values()]).argsort()
        names = next(iter(parts.values()))[1]
        joined = {name: torch.cat([made[name] for _, made in parts.values()])[order] for name in names}
        return joined.pop("actions"), joined, memory

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start.state_dict(), "candidates": [c.state_dict() for c in self.candidates]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start.load_state_dict(state["start"])
        self.candidates = [self.candidate(saved) for saved in state["candidates"]]

    def candidate(self, state: dict[str, Any]) -> Candidate:
        """The candidate whose ``state_dict`` this is."""
        policy = self.start.frozen_copy()
        policy.load_state_dict(state["policy"])
        return Candidate(state["returns"].cpu().numpy().copy(), policy, deepcopy(state["training"]))
