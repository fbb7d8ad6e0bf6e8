"""What studies of preferences on strings with a known reward share: a warm start, reward and divergence, the frontier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policyopt import registry
from policyopt.learners.annotators import evaluated
from policyopt.learners.stages import Stages
from policyopt.learners.update import Adam
from policyopt.methods import sft
from policyopt.models.language import LanguagePolicy, Sampling
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.language import respond, scored_rollouts
from policyopt.studies.claim import Metrics
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget, generator

POLICY = "fresh:layers=2,width=48"
IMITATION, SMOKE_IMITATION = 150, 3
MEASURED = 512  # held-out prompts, one response each


@lru_cache(maxsize=1)
def _imitated(problem: Bigrams, seed: int, smoke: bool) -> dict[str, Tensor]:
    policy = registry.policy(POLICY, problem, seed=seed, device="cpu")
    method = replace(sft.method(), optimizer=Adam(learning_rate=3e-3))
    budget = Budget(updates=SMOKE_IMITATION if smoke else IMITATION)
    run(method, problem, policy, budget=budget, seed=seed, cadence=Cadence(evaluations=1))
    return {name: value.clone() for name, value in policy.state_dict().items()}


def imitated(problem: Bigrams, seed: int, smoke: bool) -> LanguagePolicy:
    """A small policy that imitates the problem's demonstrations: the reference of every arm of a seed."""
    policy: LanguagePolicy = registry.policy(POLICY, problem, seed=seed, device="cpu")
    policy.load_state_dict(_imitated(problem, seed, smoke))
    return policy


@torch.no_grad()
def reward_and_divergence(policy: LanguagePolicy, reference: LanguagePolicy, problem: Bigrams) -> tuple[float, float]:
    """The mean true reward of sampled responses, and the mean of log π - log reference over them, in nats a response."""
    held_out = replace(problem, seed=problem.seed, train_size=MEASURED)
    ids = range(MEASURED)
    rng = generator(problem.seed, "measure")
    sampled = respond(policy, held_out, ids, 1, Sampling(), rng)
    batch = scored_rollouts(policy, held_out, ids, sampled)
    ratio = (batch.old_logp - evaluated(reference, batch, "logp", policy.default_micro_batch())) * batch.mask
    return float(batch.scores["true"].mean()), float(ratio.sum(1).mean())


def within(points: list[tuple[float, float]], limit: float) -> float:
    """The best reward among (reward, divergence) points whose divergence is ``limit`` or less."""
    return max(reward for reward, divergence in points if divergence <= limit)


def frontier(points: list[tuple[float, float]], levels: Sequence[float]) -> float:
    """The mean over divergences ``levels`` of the best reward of (reward, divergence) points up to it, by straight lines."""
    ordered = sorted((divergence, reward) for reward, divergence in points)
    best = np.maximum.accumulate([reward for _, reward in ordered])
    return float(np.interp(levels, [divergence for divergence, _ in ordered], best).mean())


def shortened(method: Any) -> Any:
    """Stages with one update each but the last."""
    if not isinstance(method, Stages):
        return method
    one = Budget(updates=1)
    return replace(method, stages=tuple(replace(stage, until=stage.until and one) for stage in method.stages))


@dataclass(frozen=True, kw_only=True)
class Strings:
    """``method()`` from the imitating policy under ``budget`` on the strings of a seed.

    ``demonstrated``: where other strings than the problem's are imitated first. Reported: true reward and divergence at the
    end, the best reward within 2 and within 5 nats among ``looks`` looks on the way, and the mean of the rewards at them
    (``auc``).
    """

    method: Callable[[], Any]
    budget: Budget
    problem: Bigrams = Bigrams()
    demonstrated: Bigrams | None = None
    looks: int = 8

    def __call__(self, seed: int, smoke: bool) -> Metrics:
        problem = replace(self.problem, seed=seed)
        start = replace(self.demonstrated or self.problem, seed=seed)
        policy, reference = imitated(start, seed, smoke), imitated(start, seed, smoke)
        budget = Budget(updates=8) if smoke else self.budget
        method = shortened(self.method()) if smoke else self.method()
        learner = method.learner(problem, policy, seed=seed, budget=budget)
        points = [reward_and_divergence(policy, reference, problem)]
        spent = [0.0]
        looks = 1 if smoke else self.looks
        while learner.clock.share < 1.0:
            before = int(learner.clock.share * looks)
            learner.step()
            if int(min(learner.clock.share, 1.0) * looks) > before:
                points.append(reward_and_divergence(learner.policy, reference, problem))
                spent.append(min(learner.clock.share, 1.0))
        rewards = [reward for reward, _ in points]
        return {
            "reward": rewards[-1],
            "divergence": points[-1][1],
            "best": max(rewards),
            "within 2 nats": within(points, 2.0),
            "within 5 nats": within(points, 5.0),
            "auc": sum(rewards[1:]) / len(rewards[1:]),
            "curve/x": spent,
            "curve/reward": rewards,
            "curve/divergence": [divergence for _, divergence in points],
        }
