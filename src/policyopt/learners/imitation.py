"""Imitation of reference solutions that are built step by step: cross-entropy of the expert's choice, nothing else.

The problem draws partial solutions and says what its reference solution does there (``demonstrations``, possibly
several equally good actions); the policy sees them through its view. No reward is used, nothing is sampled from the
policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from policyopt.learners.update import Adam
from policyopt.models.pointer import Pointer, PointerPolicy, masked_entropy
from policyopt.types import Budget, Clock, generator


class Demonstrated(Protocol):
    """A problem that shows what its reference solutions do on the way."""

    name: str

    def demonstrations(self, batch: int, rng: torch.Generator) -> tuple[Any, Tensor]:
        """Partial solutions, and the equally good next actions [N, E] (-1 where there are fewer)."""
        ...


def expert_distribution(choice: Tensor, experts: Tensor) -> Tensor:
    """The uniform distribution [N, A] over those of the choices [N, A] that are among the experts' actions [N, E].

    Raises ValueError where none is: the view hides the expert's action.
    """
    match = (choice[:, :, None] == experts[:, None, :]).any(-1).float()
    total = match.sum(1, keepdim=True)
    if bool((total == 0).any()):
        raise ValueError("the policy's view hides the expert's action in some states: train with a view that shows it")
    return match / total


def cross_entropy(logp: Tensor, target: Tensor) -> Tensor:
    """Mean over N of - sum_a target log pi: logp [N, A] (minus infinity where illegal), target [N, A] zero there."""
    return -(target * logp.masked_fill(target == 0, 0.0)).sum(1).mean()


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """Supervised training of a constructive policy; ``updates`` is the budget where none is given."""

    policy: Pointer
    batch: int
    optimizer: Adam
    updates: int

    def __post_init__(self) -> None:
        if self.batch < 1 or self.updates < 1:
            raise ValueError(f"batch and updates must be positive, got {self.batch} and {self.updates}")

    def learner(
        self, problem: Any, policy: PointerPolicy | None = None, *, seed: int, budget: Budget | None = None
    ) -> ImitationLearner:
        """Raises ValueError for a problem without demonstrations of partial solutions."""
        if not hasattr(problem, "instances"):
            raise ValueError(
                f"{getattr(problem, 'name', problem)!r} is not solved step by step, so it has no partial solutions "
                "to imitate: choose a problem such as tsp, cvrp, op or knapsack"
            )
        policy = policy or self.policy.build(problem.instances(1, problem.size, generator(seed, "shape")), seed)
        return ImitationLearner(self, problem, policy, seed, budget or Budget(updates=self.updates))


class ImitationLearner:
    """One step: a batch of demonstrations, one update."""

    def __init__(self, method: Imitation, problem: Demonstrated, policy: PointerPolicy, seed: int, budget: Budget):
        self.method, self.problem, self.policy, self.budget = method, problem, policy, budget
        self.optimizer = method.optimizer.build(policy.parameters())
        self.clock = Clock(seed=seed)

    def step(self) -> dict[str, Tensor | float]:
        rng = self.clock.generator("demonstrations")
        partial, experts = self.problem.demonstrations(self.method.batch, rng)
        seen = self.policy.view(partial)
        logp = self.policy.log_probabilities(seen)
        target = expert_distribution(seen["choice"], experts).to(logp.device)
        loss = cross_entropy(logp, target)
        loss.backward()  # type: ignore[no-untyped-call]
        metrics: dict[str, Tensor | float] = {
            "loss/imitation": loss.detach(),
            "policy/accuracy": (target.gather(1, logp.argmax(1, keepdim=True)) > 0).float().mean(),
            "policy/entropy": masked_entropy(logp.detach()).mean(),
            "gradient/norm": self.optimizer.step(loss.detach(), self.clock),
            "cost/env_steps": float(self.method.batch),
        }
        self.clock.advance(metrics, self.budget)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            "clock": self.clock.state_dict(),
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clock.load_state_dict(state["clock"])
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
