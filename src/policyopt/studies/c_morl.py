"""C-MORL's claim: constrained extension fills a Pareto front better than training its first policies for longer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from policyopt.learners.update import Adam, Linear
from policyopt.methods import c_morl
from policyopt.methods.c_morl import CMORL, LeastCrowded
from policyopt.models.archive import Archive
from policyopt.models.control import MLP
from policyopt.objectives.pareto import Front, expected_utility, hypervolume, non_dominated, sparsity
from policyopt.problems.control.environments import GymnasiumProblem, episode_returns
from policyopt.problems.control.point_mass import PointMass
from policyopt.reports.figures import arm_points
from policyopt.rollouts.vector import Vector
from policyopt.studies.claim import Claim, Results, paired_difference
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget, generator

STEPS, SMOKE_STEPS = 200_000, 4_000
TREE_STEPS, SMOKE_TREE_STEPS = 100_000, 1_280
GAMMA = 0.99
FULL = (1 - GAMMA**50) / (1 - GAMMA)  # the most that an objective of the point mass can return
TREE = {"depth": 5}


def small(environments: int, steps: int, minibatches: int) -> CMORL:
    """The method at laptop size: networks of 32 units, few large minibatches, a higher learning rate."""
    adam = Adam(learning_rate=1e-3, schedule=Linear(), gradient_clip=0.5, epsilon=1e-5)
    method = c_morl.method()
    base = replace(
        method.base,
        policy=MLP(hidden=(32, 32), standardize=True),
        collector=Vector(environments=environments, steps=steps, gamma=0.995),
        critic=replace(method.base.critic, optimizer=adam) if method.base.critic else None,
        optimizer=adam,
        epochs=5,
        minibatches=minibatches,
    )
    return replace(method, base=base, evaluation_gamma=GAMMA, evaluate_every=1)


def fresh_front(archive: Archive, problem: Any, starts: int) -> np.ndarray:
    """Returns of the archived policies from start states that neither training nor selection has seen, [F, K]."""
    environments = [problem.make(starts, 2**31 + 1) for _ in archive.candidates]
    rng = generator(0, "study")
    returns = [
        episode_returns(environment, candidate.policy.act, rng, gamma=GAMMA)[0].mean(0)
        for environment, candidate in zip(environments, archive.candidates, strict=True)
    ]
    front = np.array(returns)
    return front[non_dominated(front)]


@dataclass(frozen=True, kw_only=True)
class AtRandom(LeastCrowded):
    """The ablation: selects candidates at random."""

    def __call__(self, front: Front, rng: torch.Generator) -> list[int]:
        return [int(i) for i in torch.randperm(len(front), generator=rng)]


@dataclass(frozen=True, kw_only=True)
class OnPointMass:
    """One arm on the point mass."""

    spacing: float = 0.5
    initial_share: float = 0.6
    selection: LeastCrowded = LeastCrowded()

    def __call__(self, seed: int, smoke: bool) -> dict[str, float]:
        method = replace(
            small(environments=16, steps=50, minibatches=4),
            spacing=self.spacing,
            initial_share=self.initial_share,
            selection=self.selection,
            selected=3,
            updates=11,
            reference=(0.0, 0.0, 0.0),
        )
        budget = Budget(env_steps=SMOKE_STEPS if smoke else STEPS)
        trained = run(method, PointMass(), budget=budget, seed=seed, cadence=Cadence(evaluations=1))
        front = fresh_front(trained.learner.policy, PointMass(), 64)
        preferences = np.random.default_rng(1).dirichlet(np.ones(3), 200)
        return {
            "hypervolume": hypervolume(front, np.zeros(3)) / FULL**3,
            "expected_utility": expected_utility(front, preferences) / FULL,
            "sparsity": sparsity(front),
            "policies": float(len(front)),
            "evaluation_steps": sum(row.get("evaluation/env_steps", 0.0) for row in trained.rows),
        }


@dataclass(frozen=True, kw_only=True)
class OnFruitTree:
    """One arm on the fruit tree: six objectives, 32 leaves, an exact front."""

    initial_share: float = 0.4

    def __call__(self, seed: int, smoke: bool) -> dict[str, float]:
        problem = GymnasiumProblem(id="fruit-tree-v0", options=TREE, episodes=1)
        reference = (-1.0,) * 6
        method = replace(
            small(environments=8, steps=32, minibatches=2),
            spacing=1.0,
            initial_share=self.initial_share,
            selected=6,
            updates=6,
            episodes=1,
            reference=reference,
        )
        budget = Budget(env_steps=SMOKE_TREE_STEPS if smoke else TREE_STEPS)
        trained = run(method, problem, budget=budget, seed=seed, cadence=Cadence(evaluations=1))
        exact = np.array(problem.single().unwrapped.pareto_front(gamma=GAMMA))  # type: ignore[attr-defined]
        front = trained.learner.policy.front
        return {
            "hypervolume": hypervolume(front, reference) / hypervolume(exact, reference),
            "policies": float(len(front)),
        }


def figure(results: Results) -> Figure:
    """The seeds of every arm on the point mass, and the share of the exact hypervolume on the fruit tree."""
    mass = [arm for arm in results.arms if arm in POINT_MASS]
    panels = {
        m: {arm: list(results.values(m, arm)) for arm in mass} for m in ("hypervolume", "expected_utility", "sparsity")
    }
    tree = {arm: list(results.values("hypervolume", arm)) for arm in results.arms if arm in FRUIT_TREE}
    return arm_points({**panels, "hypervolume, fruit tree": tree})


POINT_MASS: dict[str, Callable[[int, bool], dict[str, float]]] = {
    "c-morl": OnPointMass(),
    "longer": OnPointMass(initial_share=1.0),
    "finer": OnPointMass(initial_share=1.0, spacing=0.25),
    "random selection": OnPointMass(selection=AtRandom()),
}
FRUIT_TREE: dict[str, Callable[[int, bool], dict[str, float]]] = {
    "fruit tree c-morl": OnFruitTree(),
    "fruit tree longer": OnFruitTree(initial_share=1.0),
}

claim = Claim(
    slug="c-morl",
    paper="2410.02236",
    text=(
        "At equal environment steps, constrained extension from the least crowded policies gives a front of larger "
        "hypervolume than training the first policies for longer."
    ),
    arms={**POINT_MASS, **FRUIT_TREE},
    gates=(
        paired_difference("hypervolume", "c-morl", "longer", above=0.0),
        paired_difference("sparsity", "c-morl", "longer", below=0.0, required=False),
        paired_difference("hypervolume", "c-morl", "finer", above=0.0, required=False),
        paired_difference("hypervolume", "c-morl", "random selection", above=0.0, required=False),
        paired_difference("hypervolume", "fruit tree c-morl", "fruit tree longer", above=0.0, required=False),
    ),
    figure=figure,
    seeds=range(5),
    budget=(
        "200k environment steps an arm and seed on the point mass, 100k on the fruit tree; evaluations come on top, one "
        "after every update in all arms"
    ),
    tuning=(
        "one PPO configuration for all arms, fixed beforehand and looked at once on seed 100: one try an arm, nothing "
        "changed"
    ),
)
