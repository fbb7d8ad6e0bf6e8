"""PMOE's claim: weights that learn how often an expert is the best keep several solutions where SAC keeps few.

Four goals around the start are equally good. SAC, PMOE on SAC and PMOE's two rival estimators have the same trunk, rates,
environment steps and updates. A goal counts as kept where at least 5% of 200 sampled walks from the middle end there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from policyopt.learners.off_policy import OffPolicy, Round, SoftCritic
from policyopt.learners.update import Adam
from policyopt.methods import pmoe, sac
from policyopt.models.mixture import TanhMixture
from policyopt.problems.control.multi_goal import HORIZON, MultiGoal, goal_distances
from policyopt.rollouts.replay import Interaction
from policyopt.studies.claim import Claim, Metrics, lower_bound, paired_difference
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget, generator

STEPS, SMOKE_STEPS, WARM_UP = 10_000, 600, 500
EXPERTS, WALKS, KEPT = 4, 200, 0.05
MARGIN = 0.375  # a twentieth of what it costs to stay in the middle


def small(method: OffPolicy) -> OffPolicy:
    """The method with two layers of 64, four environments, and one update for two environment steps."""
    adam = Adam(learning_rate=1e-3, gradient_clip=None)
    made: list[Any] = []
    for update in method.updates():
        model = getattr(update, "model", None)
        sizes = {} if model is None else {"model": replace(model, width=64)}
        if isinstance(model, TanhMixture):
            sizes["model"] = replace(sizes["model"], experts=EXPERTS)
        rate: dict[str, Any] = {"polyak": 0.01} if isinstance(update, SoftCritic) else {}
        made.append(replace(update, optimizer=adam, **sizes, **rate))
    return replace(
        method,
        rounds=(Round(updates=tuple(made), repeat=2),),
        collector=Interaction(environments=4, warm_up=WARM_UP),
        batch=128,
    )


def goals_reached(policy: Any, seed: int) -> np.ndarray:
    """The shares [4] of sampled walks from the middle that end at each goal."""
    environment, rng = MultiGoal().make(WALKS, seed), generator(seed, "walks")
    environment.position[:] = 0.0
    counts, alive = np.zeros(4), np.ones(WALKS, bool)
    for _ in range(HORIZON):
        action, _, _ = policy.act(torch.from_numpy(environment.observations), None, rng)
        step = environment.step(action.numpy())
        there = alive & step.terminated
        counts += np.bincount(goal_distances(step.next_observations[there]).argmin(1), minlength=4)
        alive &= ~(step.terminated | step.truncated)
    return np.asarray(counts / WALKS)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """``goals``: how many are kept; ``reached``: the share of walks that end at one; ``auc``: the mean over the budget of
    the greedy return."""

    method: OffPolicy

    def __call__(self, seed: int, smoke: bool) -> Metrics:
        budget, cadence = Budget(env_steps=SMOKE_STEPS if smoke else STEPS), Cadence(evaluations=2 if smoke else 10)
        trained = run(self.method, MultiGoal(), budget=budget, seed=seed, cadence=cadence)
        steps, returns = trained.curve("eval/return")
        steps = [4.0 * step for step in steps]
        shares = goals_reached(trained.learner.policy, seed)
        return {
            "goals": float((shares >= KEPT).sum()),
            "reached": float(shares.sum()),
            "auc": float(np.trapezoid(returns, steps) / (steps[-1] - steps[0])),
            "curve/x": steps,
            "curve/return": returns,
        }


claim = Claim(
    slug="pmoe",
    paper="2104.09122",
    text=(
        "Where four goals are equally good, PMOE on SAC keeps more of them than SAC, and its return is not lower at the "
        "same number of environment steps."
    ),
    arms={
        "PMOE": Learned(method=small(pmoe.method())),
        "SAC": Learned(method=small(sac.method())),
        "Gumbel": Learned(method=small(pmoe.gumbel())),
        "score ratio": Learned(method=small(pmoe.score_ratio())),
    },
    gates=(
        paired_difference("goals", "PMOE", "SAC", above=0.0),
        paired_difference("auc", "PMOE", "SAC", above=-MARGIN),
        lower_bound("goals", "PMOE", above=2.5, required=False),
        paired_difference("goals", "PMOE", "Gumbel", above=0.0, required=False),
        paired_difference("goals", "PMOE", "score ratio", above=0.0, required=False),
    ),
    seeds=range(5),
    budget="10k environment steps an arm and seed, 500 of them warm-up; one update for two steps",
    tuning="one setting for all arms (rate 1e-3, batch 128, targets that follow by 0.01), fixed beforehand",
    axis="environment steps",
)
