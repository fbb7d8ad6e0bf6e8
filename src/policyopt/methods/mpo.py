"""MPO: DPO on pairs that are easy to tell apart, then PPO on the prompts of the difficult ones (arXiv 2403.19443).

A reward model r is fitted to the preferences and divides them by its own gap g = r(chosen) - r(rejected):

    easy, g ≥ τ        DPO from the initial policy
    difficult, g < τ   PPO on their prompts, from DPO's policy, which is also the reference of its penalty

    method       the signed gap: pairs that the reward model takes for mislabelled are difficult
    absolute     |g|
    unselected   both stages on all pairs     swapped          DPO on the difficult pairs, PPO on the prompts of the easy ones
    ppo_alone    PPO from the initial policy  toward_initial   PPO's penalty is to the initial policy, not to DPO's

τ is not published: the median of the gaps (``share`` of the pairs are easy). PPO's reward is r minus β k1 to the reference, in
the reward of each token; β = 0.05 is ours. Two reward sources multiply in the optimum: π ∝ sft exp(r̂_dpo/β_dpo) exp(r/β).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from policyopt.credit.returns import GeneralizedAdvantage, ReferencePenalty, RewardAtEnd
from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy, OnPolicyLearner
from policyopt.learners.reward_model import BradleyTerry, Rewarded, reward_model
from policyopt.learners.stages import Stage, Stages
from policyopt.methods import dpo, ppo
from policyopt.models.reward_model import RewardModel
from policyopt.objectives.preference import ranked_rows
from policyopt.problems.language.subset import subset
from policyopt.rollouts.language import Groups
from policyopt.rollouts.preferences import ranked_responses
from policyopt.types import Budget, Learner

FAMILY = "preferences"
VARIANTS = ("absolute", "unselected", "swapped", "ppo_alone", "toward_initial")

CHUNK = 256  # prompts whose pairs are scored at once


def reward_gaps(model: RewardModel, problem: Any) -> torch.Tensor:
    """r(best) - r(worst) of every training ranking, [prompts]."""
    size, gaps = problem.size("train"), []
    for start in range(0, size, CHUNK):
        batch, _ = ranked_responses(model.body, problem, range(start, min(start + CHUNK, size)))
        reward = model.score(batch, model.default_micro_batch())[ranked_rows(batch)]
        gaps.append(reward[:, 0] - reward[:, -1])
    return torch.cat(gaps)


def easy_pairs(gaps: torch.Tensor, threshold: float, absolute: bool = False) -> torch.Tensor:
    """[prompts] True where the gap, or its size, is ``threshold`` or more."""
    return (gaps.abs() if absolute else gaps) >= threshold


@dataclass(frozen=True, kw_only=True)
class Selected(Stage):
    """A stage on the prompts of the easy pairs, or of the others; ``share`` of all pairs are easy."""

    by: str = "reward"
    easy: bool = True
    share: float = 0.5
    absolute: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ValueError(
                f"share is the part of the pairs that are easy, above 0 and below 1, got {self.share}: with all of them easy "
                "nothing is left for PPO (train dpo), with none nothing for DPO (train mpo:ppo_alone)"
            )

    def part(self, artifacts: Mapping[str, Learner], problem: Any) -> Any:
        """The problem with these prompts alone."""
        gaps = reward_gaps(reward_model(artifacts, self.by), problem)
        sizes = gaps.abs() if self.absolute else gaps
        threshold = float(sizes.quantile(1.0 - self.share))
        chosen = easy_pairs(gaps, threshold, self.absolute) == self.easy
        ids: Sequence[int] = chosen.nonzero().squeeze(1).tolist()
        return subset(problem, ids)

    def build(
        self, artifacts: Mapping[str, Learner], problem: Any, policy: Any, seed: int, budget: Budget | None
    ) -> Learner:
        return Stage.build(self, artifacts, self.part(artifacts, problem), policy, seed, budget)


@dataclass(frozen=True, kw_only=True)
class RewardedSelected(Selected):
    """The same, rewarded by the reward model."""

    def build(
        self, artifacts: Mapping[str, Learner], problem: Any, policy: Any, seed: int, budget: Budget | None
    ) -> Learner:
        rewarded = Rewarded(name=self.name, method=self.method, until=self.until, by=self.by)
        return rewarded.build(artifacts, self.part(artifacts, problem), policy, seed, budget)


@dataclass(frozen=True, kw_only=True)
class TowardInitial(RewardedSelected):
    """The same, penalised towards the reference of the stage ``first``."""

    first: str = "easy"

    def build(
        self, artifacts: Mapping[str, Learner], problem: Any, policy: Any, seed: int, budget: Budget | None
    ) -> Learner:
        finished = artifacts[self.first]
        assert isinstance(finished, OnPolicyLearner)
        method = replace(self.method, annotators=(Reference(model=finished.models["annotators.0"]),))
        return RewardedSelected.build(replace(self, method=method), artifacts, problem, policy, seed, budget)


def reinforcement(beta: float = 0.05) -> OnPolicy:
    """PPO on a response's reward with the divergence to the policy that it starts from in the reward of each token."""
    return replace(
        ppo.method(),
        collector=Groups(prompts=64, samples=1),
        annotators=(Reference(),),
        credit=(RewardAtEnd(), ReferencePenalty(coefficient=beta), GeneralizedAdvantage(lam=0.95)),
    )


def mixed(*later: Stage, reward: Budget) -> Stages:
    return Stages(stages=(Stage(name="reward", method=BradleyTerry(), until=reward), *later))


REWARD, FIRST = Budget(updates=500), Budget(updates=500)


def method() -> Stages:
    easy = Selected(name="easy", method=dpo.method(), until=FIRST)
    return mixed(easy, RewardedSelected(name="difficult", method=reinforcement(), easy=False), reward=REWARD)


def absolute() -> Stages:
    easy = Selected(name="easy", method=dpo.method(), until=FIRST, absolute=True)
    difficult = RewardedSelected(name="difficult", method=reinforcement(), easy=False, absolute=True)
    return mixed(easy, difficult, reward=REWARD)


def unselected() -> Stages:
    every = Stage(name="dpo", method=dpo.method(), until=FIRST)
    return mixed(every, Rewarded(name="ppo", method=reinforcement()), reward=REWARD)


def swapped() -> Stages:
    difficult = Selected(name="difficult", method=dpo.method(), until=FIRST, easy=False)
    return mixed(difficult, RewardedSelected(name="easy", method=reinforcement()), reward=REWARD)


def ppo_alone() -> Stages:
    return mixed(Rewarded(name="ppo", method=reinforcement()), reward=REWARD)


def toward_initial() -> Stages:
    easy = Selected(name="easy", method=dpo.method(), until=FIRST)
    return mixed(easy, TowardInitial(name="difficult", method=reinforcement(), easy=False), reward=REWARD)
