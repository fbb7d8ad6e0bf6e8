"""Fitting a reward model to preferences by the Bradley-Terry likelihood, and rewarding rollouts with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from policyopt.credit.scaling import with_scores
from policyopt.learners.annotators import Annotator
from policyopt.learners.on_policy import OnPolicy, OnPolicyLearner
from policyopt.learners.stages import Stage
from policyopt.models.language import LanguagePolicy
from policyopt.models.reward_model import RewardModel, load_reward_model
from policyopt.objectives.policy_gradient import Objective
from policyopt.objectives.preference import ChosenLikelihood, Preference, Sigmoid, Value, ranked_rows
from policyopt.rollouts.preferences import Rankings
from policyopt.types import Budget, Clock, Collector, Learner, Rollouts

BRADLEY_TERRY = Preference(score=Value(), loss=Sigmoid(beta=1.0))


@dataclass(frozen=True, kw_only=True)
class BradleyTerry(OnPolicy):
    """A reward model with the policy's network: -log σ(r(chosen) - r(rejected)), averaged over pairs (arXiv 2203.02155).

    The policy stays as it is. Held-out: ``eval/preference_accuracy``, ``eval/preference_confidence`` (the mean probability
    that it gives to what it prefers) and ``eval/calibration`` (``calibration_error``). ``with_language_loss`` adds the
    likelihood of the chosen responses.
    """

    collector: Collector = Rankings()
    objective: Objective = BRADLEY_TERRY

    def learner(self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None) -> Any:
        if not isinstance(policy, LanguagePolicy):
            raise ValueError(f"a reward model is made from a language policy, got {type(policy).__name__}")
        return RewardModelLearner(self, problem, policy, seed, budget)


def calibration_error(margin: Tensor, bins: int = 10) -> Tensor:
    """The expected calibration error (arXiv 1706.04599, Eq. 5) of the preferences that margins [L] = r(chosen) - r(rejected) say.

    A pair's confidence is σ(|margin|), which lies in [0.5, 1]: in bins of equal width, the mean over pairs of
    |share of right orders - mean confidence| of their bin. A margin of 0 counts half.
    """
    confidence, right = margin.abs().sigmoid(), (margin.sign() + 1) / 2
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    gaps = margin.new_zeros(bins).index_add(0, index, right - confidence)
    return gaps.abs().sum() / len(margin)


def with_language_loss(coefficient: float = 1.0) -> BradleyTerry:
    """-log σ(r(chosen) - r(rejected)) - coefficient · Σ_t log π(chosen_t) of the same network (arXiv 2307.04964, Sec. 3.2)."""
    return BradleyTerry(objective=replace(BRADLEY_TERRY, regularizers=(ChosenLikelihood(coefficient=coefficient),)))


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
        """The objective's metrics and the calibration error on held-out rankings, the best against the worst of each."""
        held_out = self.fit.method.collector.held_out(self.model, self.fit.problem)
        if held_out is None:
            return {}
        reward = self.model.score(held_out, self.fit.limit)[ranked_rows(held_out)]
        return {**self.fit.evaluate(), "eval/calibration": calibration_error(reward[:, 0] - reward[:, -1])}

    def state_dict(self) -> dict[str, Any]:
        return self.fit.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fit.load_state_dict(state)


@dataclass(frozen=True, kw_only=True)
class LearnedReward(Annotator):
    """The score "reward" as a fitted reward model says it; what the problem says stays as "problem_reward".

    ``model`` comes from a finished stage, or is read from the folder ``saved``.
    """

    needs: ClassVar[tuple[str, ...]] = ("scores",)
    gives: ClassVar[tuple[str, ...]] = ("scores",)
    model: Any = field(default=None, repr=False)
    saved: str = ""

    def build(self, policy: Any, seed: int) -> RewardModel:
        model = load_reward_model(Path(self.saved), str(policy.device)) if self.saved else self.model
        if not isinstance(model, RewardModel):
            raise ValueError(
                "a learned reward needs a fitted reward model: put a stage with BradleyTerry() before this one, or give "
                "the folder of a saved one (saved=…)"
            )
        return model

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
