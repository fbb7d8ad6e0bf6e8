"""A stage that gathers rollouts and keeps them, for stages that learn from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from policyopt.learners.on_policy import OnPolicy, OnPolicyLearner
from policyopt.learners.stages import Stage
from policyopt.objectives.policy_gradient import Objective
from policyopt.rollouts.kept import columns_of, from_columns, joined
from policyopt.types import Budget, Learner, Rollouts


@dataclass(frozen=True, kw_only=True)
class Gathering(OnPolicy):
    """Collects, annotates and gives credit as ``OnPolicy`` does, and keeps the result instead of learning from it."""

    objective: Objective = Objective()

    def learner(self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None) -> GatheringLearner:
        return GatheringLearner(self, problem, policy, seed, budget)


class GatheringLearner(OnPolicyLearner):
    """``kept`` has one batch a step."""

    def __init__(self, method: OnPolicy, problem: Any, policy: Any, seed: int, budget: Budget | None) -> None:
        super().__init__(method, problem, policy, seed, budget)
        self.kept: list[Rollouts] = []

    @property
    def data(self) -> Rollouts:
        """Everything that was gathered."""
        return joined(self.kept)

    def step(self) -> dict[str, Tensor | float]:
        collected = self.method.collector(self.policy, self.problem, self.clock, self.memories.get("collector"))
        self.kept.append(self._credited(collected.batches["rollouts"]))
        self.clock.advance(collected.metrics, self.budget)
        return dict(collected.metrics)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "kept": [columns_of(batch) for batch in self.kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.kept = [from_columns(columns) for columns in state["kept"]]


@dataclass(frozen=True, kw_only=True)
class Learning(Stage):
    """A stage that learns from what the stage ``from_`` gathered; its method's collector is a ``Kept``."""

    from_: str = "gathering"

    def build(
        self, artifacts: Mapping[str, Learner], problem: Any, policy: Any, seed: int, budget: Budget | None
    ) -> Learner:
        gathered = artifacts.get(self.from_)
        if not isinstance(gathered, GatheringLearner):
            raise ValueError(f"no stage named {self.from_!r} gathered rollouts before this one")
        method = replace(self.method, collector=replace(self.method.collector, data=gathered.data))
        return Stage.build(replace(self, method=method), artifacts, problem, policy, seed, budget)
