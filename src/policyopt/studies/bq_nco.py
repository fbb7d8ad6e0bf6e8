"""BQ-NCO's claim: shown the remaining problem alone, a small policy generalizes to larger instances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from policyopt.learners.imitation import Imitation
from policyopt.learners.update import Adam, Cosine
from policyopt.methods.bq_nco import Quotient, Whole
from policyopt.models.pointer import Pointer
from policyopt.problems.decision.construction import Construction
from policyopt.problems.decision.knapsack import Knapsack
from policyopt.problems.decision.routing import TSP
from policyopt.reports.figures import learning_curves
from policyopt.studies.claim import Claim, Results, paired_difference, upper_bound
from policyopt.types import generator

CITIES = TSP(size=20, test_sizes=(20, 50, 100))
ITEMS = Knapsack(size=30, test_sizes=(30, 100, 200), test_instances=100)
QUOTIENT = Imitation(
    policy=Pointer(view=Quotient(), dim=64, layers=4, heads=4, feedforward=128),
    batch=128,
    optimizer=Adam(learning_rate=2e-3, schedule=Cosine(), gradient_clip=None),
    updates=3000,
)
WHOLE = replace(QUOTIENT, policy=replace(QUOTIENT.policy, view=Whole()))


def gaps(problem: Construction, act: Any, seed: int) -> dict[str, float | list[float]]:
    """The greedy gap to the reference, by size ``gap_<size>`` and as a curve."""
    found = problem.evaluate(act, generator(seed, "evaluate"))
    by_size = [found[f"eval/gap_{size}"] for size in problem.test_sizes]
    named = {f"gap_{size}": gap for size, gap in zip(problem.test_sizes, by_size, strict=True)}
    return {**named, "curve/x": [float(size) for size in problem.test_sizes], "curve/gap": by_size}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A policy imitated at one size and judged at several."""

    method: Imitation
    problem: Construction

    def __call__(self, seed: int, smoke: bool) -> dict[str, float | list[float]]:
        problem, method = self.problem, self.method
        if smoke:
            problem = replace(problem, train_instances=64, test_instances=4)
            method = replace(method, batch=16, updates=20)
        learner = method.learner(problem, seed=seed)
        for _ in range(method.updates):
            metrics = learner.step()
        return {**gaps(problem, learner.policy.act, seed), "loss": float(metrics["loss/imitation"])}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A fixed rule: the legal choice with the lowest ``cost`` of what is seen."""

    problem: Construction
    cost: Callable[[dict[str, Tensor]], Tensor]

    def __call__(self, seed: int, smoke: bool) -> dict[str, float | list[float]]:
        problem = replace(self.problem, test_instances=4) if smoke else self.problem
        return gaps(problem, self.act, seed)

    def act(self, partial: Any, memory: Any, rng: torch.Generator, greedy: bool) -> tuple[Tensor, None, Any]:
        seen = partial.tail()
        index = self.cost(seen).masked_fill(~seen["legal"], torch.inf).argmin(1, keepdim=True)
        return seen["choice"].gather(1, index)[:, 0], None, memory


def distance(seen: dict[str, Tensor]) -> Tensor:
    return seen["distance"]


def weight_per_value(seen: dict[str, Tensor]) -> Tensor:
    return seen["features"][..., 1] / seen["features"][..., 0]


def figure(results: Results) -> Figure:
    """Gaps of the tours over the number of cities."""
    shown = ("quotient", "whole", "nearest neighbour")
    return learning_curves(
        {arm: results.curves("gap", arm) for arm in shown},
        xlabel="cities of a held-out instance",
        ylabel="optimality gap",
    )


claim = Claim(
    slug="bq-nco",
    paper="2301.03313",
    text=(
        "Trained on tours of 20 cities, a policy that sees the remaining problem alone is nearer to optimal on 100 "
        "cities than the same policy that sees the whole instance, and than the nearest neighbour."
    ),
    arms={
        "quotient": Trained(method=QUOTIENT, problem=CITIES),
        "whole": Trained(method=WHOLE, problem=CITIES),
        "nearest neighbour": Rule(problem=CITIES, cost=distance),
        "knapsack, quotient": Trained(method=replace(QUOTIENT, updates=600), problem=ITEMS),
        "knapsack, by density": Rule(problem=ITEMS, cost=weight_per_value),
    },
    gates=(
        paired_difference("gap_100", "whole", "quotient", above=0.0),
        paired_difference("gap_100", "nearest neighbour", "quotient", above=0.0),
        paired_difference("gap_50", "whole", "quotient", above=0.0, required=False),
        paired_difference("gap_20", "whole", "quotient", above=0.0, required=False),
        upper_bound("gap_100", "knapsack, quotient", below=0.01, required=False),
        upper_bound("gap_200", "knapsack, quotient", below=0.01, required=False),
    ),
    figure=figure,
    seeds=range(5),
    budget="3000 updates of 128 solved instances of 20 cities",
    tuning="learning rate 1e-3 or 2e-3, by gap_100 on seed 100 with 1200 updates: two tries an arm, both take 2e-3",
)
