"""What the studies of offline methods share: one size for every arm, and an arm that learns from logged walks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from policyopt.learners.off_policy import OffPolicy, OffPolicyLearner, Round, first_values
from policyopt.problems.control.checker import Checker
from policyopt.problems.control.environments import episode_returns
from policyopt.studies.claim import Metrics
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget, generator

UPDATES, SMOKE_UPDATES = 6000, 20
WIDTH, LAYERS, WIDTH_VAE = 64, 2, 128
GAMMA = 0.99


def reduced(method: OffPolicy) -> OffPolicy:
    """The method with networks of two layers of 64 units (an autoencoder's 128) and batches of 128."""
    updates: list[Any] = []
    for update in method.updates():
        model: Any = getattr(update, "model", None)
        width = WIDTH_VAE if update.trains == "vae" else WIDTH
        updates.append(replace(update, model=replace(model, width=width, layers=LAYERS)))  # type: ignore[call-arg]
    return replace(method, rounds=(Round(updates=tuple(updates)),), batch=128)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A method on the data set of this seed; ``good`` is that of ``Checker``."""

    method: OffPolicy
    good: float | None = None

    def __call__(self, seed: int, smoke: bool) -> Metrics:
        problem = Checker(seed=seed, good=self.good, logged=500 if smoke else Checker.logged)
        budget = Budget(updates=SMOKE_UPDATES if smoke else UPDATES)
        result = run(self.method, problem, budget=budget, seed=seed, cadence=Cadence(evaluations=2 if smoke else 6))
        steps, returns = result.curve("eval/return")
        assert isinstance(result.learner, OffPolicyLearner)
        final = final_metrics(result.learner, problem, seed)
        return {**final, "curve/x": list(steps), "curve/return": list(returns)}


def final_metrics(learner: OffPolicyLearner, problem: Checker, seed: int) -> dict[str, float]:
    """Of 200 starts that all arms of a seed share: the mean return, and |Q_1(s, π(s)) − discounted return| where the agent
    has values."""
    rng = generator(seed, "final")
    returns, _ = episode_returns(problem.make(200, 10_000 + seed), learner.policy.act, rng)
    found = {"return": float(returns.mean())}
    if "critic" not in learner.agent:
        return found
    environment = problem.make(200, 10_000 + seed)
    observation = torch.from_numpy(environment.observations)
    discounted, _ = episode_returns(environment, learner.policy.act, rng, gamma=GAMMA)
    with torch.no_grad():
        action = learner.policy.act(observation, None, rng, True)[0]
        values = first_values(learner.agent, learner.agent["standardization"](observation), action)
    return {**found, "value_error": float((values - torch.from_numpy(discounted)).abs().mean())}
