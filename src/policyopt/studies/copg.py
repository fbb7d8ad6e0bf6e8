"""CoPG's claim: off-policy, only the contrastive baseline leads to the regularized optimum.

The paper's bandit: three arms of reward 2.5, 2 and 1, pairs of two different samplers that prefer the worst arm, β = 0.5.
Regret is exact: J(π*) - J(π) with J = E[R] - β KL. Baselines: IPO on the pairs ranked by reward, and off-policy policy gradients
of the regularized reward without a baseline and with the exact value of the policy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.methods import dpo
from policyopt.methods.copg import Contrastive
from policyopt.models.log_linear import LogLinearPolicy
from policyopt.objectives.preference import ListLoss, LogRatio, Preference, Square
from policyopt.problems.decision.bandit import Bandit, tabular
from policyopt.rollouts.bandit import LoggedPairs
from policyopt.studies.bandits import BanditArm
from policyopt.studies.claim import Claim, Metrics, lower_bound, upper_bound
from policyopt.types import Clock, Collected, Outputs, Rollouts, generator

BETA, UPDATES, PAIRS = 0.5, 1500, 10_000
SAMPLERS = torch.tensor([[0.1, 0.2, 0.7], [0.05, 0.05, 0.9]])


def draw(seed: int) -> Bandit:
    """The bandit with a data set of its own."""
    rng = generator(seed, "contrastive-bandit")
    first, second = torch.multinomial(SAMPLERS, PAIRS, replacement=True, generator=rng)
    pairs = torch.stack([torch.zeros_like(first), first, second], 1)
    return tabular(torch.tensor([[2.5, 2.0, 1.0]], dtype=torch.float64), pairs=pairs)


@dataclass(frozen=True, kw_only=True)
class Scored(LoggedPairs):
    """Logged pairs with the rewards of both actions, and the value of the present policy as ``scores["value"]``."""

    def __call__(self, policy: LogLinearPolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        batch = super().__call__(policy, problem, clock).batches["rollouts"]
        reward = problem.reward[batch.prompt_id, batch.actions[:, 0]]
        value = problem.value(policy().detach()).expand(len(batch)).clone()
        scores = TensorDict({"reward": reward, "value": value}, [len(batch)])
        return Collected({"rollouts": batch.replace(scores=scores)})


@dataclass(frozen=True, kw_only=True)
class Centred(LogRatio):
    """Sequence scores with a gradient weighted by the regularized reward minus a baseline: what an off-policy policy
    gradient without importance weights climbs."""

    value_baseline: bool = False

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Tensor:
        score = super().__call__(outputs, batch)
        baseline = batch.scores["value"] if self.value_baseline else 0.0
        weight = (batch.scores["reward"] - BETA * score - baseline).detach()
        return weight * (score - score.detach())


@dataclass(frozen=True, kw_only=True)
class Climbed(ListLoss):
    """-Σ of the scores of a list."""

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        return -scores.sum(1)


def measure(bandit: Bandit, policy: LogLinearPolicy) -> Metrics:
    def regularized(probability: Tensor) -> Tensor:
        return bandit.value(probability) - BETA * bandit.divergence(probability)

    return {"regret": float(regularized(bandit.optimum(BETA)) - regularized(policy().detach()))}


def arm(objective: Preference) -> BanditArm:
    method: OnPolicy = replace(
        dpo.method(),
        collector=Scored(pairs=512),
        annotators=(Reference(),),
        objective=objective,
        optimizer=Adam(learning_rate=1e-2, gradient_clip=None),
    )
    return BanditArm(problem=draw, method=method, updates=UPDATES, measure=measure)


claim = Claim(
    slug="copg",
    paper="2406.19185",
    text="From off-policy pairs CoPG reaches the regularized optimum (regret below 0.001), where IPO, and policy gradients "
    "without a baseline or with the policy's value as baseline, are biased.",
    arms={
        "copg": arm(Preference(loss=Contrastive(beta=BETA))),
        "ipo": arm(Preference(loss=Square(beta=BETA))),
        "policy gradient": arm(Preference(score=Centred(), loss=Climbed())),
        "policy gradient, value baseline": arm(Preference(score=Centred(value_baseline=True), loss=Climbed())),
    },
    gates=(
        upper_bound("regret", "copg", below=0.001),
        lower_bound("regret", "policy gradient, value baseline", above=0.01),
        lower_bound("regret", "ipo", above=0.01),
        lower_bound("regret", "policy gradient", above=0.2919),
    ),
    seeds=range(10),
    budget=f"{UPDATES} updates of 512 of 10,000 pairs an arm and seed",
    tuning="one learning rate for all arms, 1e-2, ten times the paper's, so that a fifth of its updates suffice; one try",
)
