"""Fitting a reward model to preferences by the Bradley-Terry likelihood, and rewarding rollouts with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from policyopt.credit.scaling import with_scores
from policyopt.learners.annotators import Annotator
from policyopt.learners.on_policy import OnPolicy, OnPolicyLearner
from policyopt.learners.stages import Stage
from policyopt.models.language import LanguagePolicy
from policyopt.models.reward_model import RewardModel
from policyopt.objectives.policy_gradient import Objective
from policyopt.objectives.preference import Preference, Sigmoid, Value
from policyopt.rollouts.preferences import Rankings
from policyopt.types import Budget, Clock, Collector, Learner, Rollouts

BRADLEY_TERRY = Preference(score=Value(), loss=Sigmoid(beta=1.0))


@dataclass(frozen=True, kw_only=True)
class BradleyTerry(OnPolicy):
    """A reward model with the policy's network: -log σ(r(chosen) - r(rejected)), averaged over pairs (arXiv 2203.02155).

    The policy stays as it is. Held-out ``eval/preference_accuracy`` and ``eval/preference_confidence`` (the mean
    probability that it gives to what it prefers) agree where it is calibrated.
    """

    collector: Collector = Rankings()
    objective: Objective = BRADLEY_TERRY

    def learner(self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None) -> Any:
        if not isinstance(policy, LanguagePolicy):
            raise ValueError(f"a reward model is made from a language policy, got {type(policy).__name__}")
        return RewardModelLearner(self, problem, policy, seed, budget)


class RewardModelLearner:
    """Trains ``model``; ``policy`` is the one that was given, which goes on to act."""

    def __init__(
        self, method: BradleyTerry, problem: Any, policy: LanguagePolicy, seed: int, budget: Budget | None
    ) -> None:
        self.policy, self.model = policy, RewardModel(policy, seed)
        self.fit = OnPolicyLearner(method, problem, self.model, seed, budget)

    @property
    def clock(self) -> Clock:
        return self.fit.clock

    def step(self) -> Mapping[str, Tensor | float]:
        return self.fit.step()

    def evaluate(self) -> Mapping[str, Tensor | float]:
        return self.fit.evaluate()

    def state_dict(self) -> dict[str, Any]:
        return self.fit.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fit.load_state_dict(state)


@dataclass(frozen=True, kw_only=True)
class LearnedReward(Annotator):
    """The score "reward" as a fitted reward model says it; what the problem says stays as "problem_reward".

    ``model`` comes from a finished stage.
    """

    needs: ClassVar[tuple[str, ...]] = ("scores",)
    gives: ClassVar[tuple[str, ...]] = ("scores",)
    model: Any = field(default=None, repr=False)

    def build(self, policy: Any, seed: int) -> RewardModel:
        if not isinstance(self.model, RewardModel):
            raise ValueError(
                "a learned reward needs a fitted reward model: put a stage with BradleyTerry() before this one"
            )
        return self.model

    def __call__(self, batch: Rollouts, policy: Any, model: RewardModel, limit: int, memory: Any = None) -> Rollouts:
        return with_scores(batch, problem_reward=batch.scores["reward"], reward=model.score(batch, limit))


@dataclass(frozen=True, kw_only=True)
class Rewarded(Stage):
    """A stage whose rollouts are rewarded by the reward model that the stage ``by`` fitted."""

    by: str = "reward"

    def build(
        self, artifacts: Mapping[str, Learner], problem: Any, policy: Any, seed: int, budget: Budget | None
    ) -> Learner:
        learned = LearnedReward(model=reward_model(artifacts, self.by))
        method = replace(self.method, annotators=(learned, *self.method.annotators))
        return Stage.build(replace(self, method=method), artifacts, problem, policy, seed, budget)


def reward_model(artifacts: Mapping[str, Learner], name: str) -> RewardModel:
    """What the finished stage ``name`` fitted."""
    fitted = artifacts.get(name)
    if not isinstance(fitted, RewardModelLearner):
        raise ValueError(f"no stage named {name!r} fitted a reward model before this one")
    return fitted.model
