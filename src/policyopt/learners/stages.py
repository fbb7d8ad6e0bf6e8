"""Several learners in sequence: imitate, fit a reward, then optimize. One learner to the outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from policyopt.types import Budget, Clock, Learner, Part


@dataclass(frozen=True, kw_only=True)
class Stage(Part):
    """One learner of a sequence, run ``until`` its own budget is spent (None: to the end of the whole budget).

    It goes on training the former stage's policy itself, so that what stands under that stage's name changes with it (parts
    that need it as it was take a frozen copy when they are built); with ``restart`` it starts from a copy of the policy that
    was given in the beginning. ``build`` may be overridden to make the learner from what the finished stages left
    (``artifacts``: name → learner).
    """

    name: str
    method: Any
    until: Budget | None = None
    restart: bool = False

    def build(
        self, artifacts: Mapping[str, Learner], problem: Any, policy: Any, seed: int, budget: Budget | None
    ) -> Learner:
        learner: Learner = self.method.learner(problem, policy, seed=seed, budget=self.until or budget)
        return learner


@dataclass(frozen=True, kw_only=True)
class Stages(Part):
    """The stages in order, the whole sequence ``repeat`` times. Costs add up; a resume never retrains a finished stage."""

    stages: tuple[Stage, ...]
    repeat: int = 1

    def __post_init__(self) -> None:
        if not self.stages or self.repeat < 1:
            raise ValueError("a sequence needs at least one stage and one repetition")
        if any(stage.until is None for stage in self.stages[:-1]):
            raise ValueError("every stage but the last needs its own budget (until=…), or the next never begins")
        if self.repeat > 1 and self.stages[-1].until is None:
            raise ValueError("to be repeated, the last stage needs its own budget as well")

    def learner(self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None) -> StagesLearner:
        return StagesLearner(self, problem, policy, seed, budget)


class StagesLearner:
    """``position`` counts the stages begun; the artifacts are the learners of the finished ones, by name."""

    def __init__(self, method: Stages, problem: Any, policy: Any, seed: int, budget: Budget | None) -> None:
        self.method, self.problem, self.seed, self.budget = method, problem, seed, budget
        self.first_policy = policy
        self.given = policy.copied() if any(stage.restart for stage in method.stages) else None
        self.clock = Clock(seed=seed)
        self.artifacts: dict[str, Learner] = {}
        self.position = 0
        self.current = self._build()

    @property
    def policy(self) -> Any:
        return self.current.policy

    @property
    def stage(self) -> Stage:
        return self.method.stages[self.position % len(self.method.stages)]

    def _build(self) -> Learner:
        policy = self.artifacts[self._former()].policy if self.artifacts else self.first_policy
        if self.stage.restart and self.artifacts:
            assert self.given is not None
            policy = self.given.copied()
        return self.stage.build(self.artifacts, self.problem, policy, self.seed + self.position, self.budget)

    def _former(self) -> str:
        return self.method.stages[(self.position - 1) % len(self.method.stages)].name

    def step(self) -> dict[str, Tensor | float]:
        if self._finished() and self.position + 1 < self.method.repeat * len(self.method.stages):
            self.artifacts[self.stage.name] = self.current
            self.position += 1
            self.current = self._build()
        metrics = dict(self.current.step())
        self.clock.advance(metrics, self.budget)
        return {**metrics, "stage": float(self.position)}

    def _finished(self) -> bool:
        until = self.stage.until
        return until is not None and until.share(self.current.clock.spent) >= 1.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "clock": self.clock.state_dict(),
            "position": self.position,
            "finished": {name: learner.state_dict() for name, learner in self.artifacts.items()},
            "current": self.current.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Builds each stage that was begun, in order, and gives it its saved state: nothing is trained again."""
        for position in range(state["position"] + 1):
            self.position = position
            self.current = self._build()
            begun = position == state["position"]
            self.current.load_state_dict(state["current"] if begun else state["finished"][self.stage.name])
            if not begun:
                self.artifacts[self.stage.name] = self.current
        self.clock.load_state_dict(state["clock"])
