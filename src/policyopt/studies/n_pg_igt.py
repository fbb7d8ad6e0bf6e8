"""N-PG-IGT's claim: normalized momentum with transported gradients ends nearer the optimum than the plain policy gradient.

A linear system with quadratic costs and a Gaussian policy of fixed width: the Fisher information never vanishes there, as
the theory asks, and the value of every iterate is known exactly. The chain, with a softmax table, is where it may vanish and
where there is a local optimum: methods of normalized single-trajectory steps are expected to LOSE on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from policyopt.credit.reward_to_go import RewardToGo
from policyopt.methods import n_pg_igt
from policyopt.methods.n_pg_igt import PolicyAscent, PolicyAscentLearner
from policyopt.models.linear import Linear
from policyopt.problems.control.chain import Chain
from policyopt.problems.control.lqr import LQR
from policyopt.reports.statistics import bootstrap_interval
from policyopt.rollouts.episodes import Episodes
from policyopt.studies.claim import Claim, Effect, Gate, Metrics, Results, paired_difference

DEVIATION = 0.3
SMOKE_STEPS = 4
LATE = 0.1  # the share of the trajectories over whose iterates the gap is averaged


@cache
def best_linear_value() -> float:
    problem = LQR()
    return problem.value(problem.optimal_gain(DEVIATION), DEVIATION)


def gap_of_gain(learner: PolicyAscentLearner) -> float:
    """How far the gain that was learned falls short of the best one, exactly."""
    gain = learner.at.current.double().numpy()
    return best_linear_value() - LQR().value(gain, DEVIATION)


def gap_of_table(learner: PolicyAscentLearner) -> float:
    """How far the softmax table falls short of the optimal policy, exactly."""
    problem = Chain()
    with torch.no_grad():
        table = learner.policy(torch.eye(problem.states)).double().softmax(-1).numpy()
    return problem.optimal_value - problem.value(table)


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """A method from the zero policy, with ``trajectories`` to play, ``batch`` of them for each estimate."""

    method: PolicyAscent
    problem: LQR | Chain
    gap: Callable[[PolicyAscentLearner], float]
    batch: int
    trajectories: int

    def __call__(self, seed: int, smoke: bool) -> Metrics:
        problem, collector = self.problem, Episodes(episodes=self.batch, gamma=self.problem.gamma)
        method = replace(self.method, policy=Linear(deviation=DEVIATION), collector=collector, credit=RewardToGo())
        learner = method.learner(problem, seed=seed)
        budget = SMOKE_STEPS * self.batch if smoke else self.trajectories
        played: list[float] = []
        gaps: list[float] = []
        while not played or played[-1] < budget:
            learner.step()
            played.append(learner.clock.spent["env_steps"] / problem.horizon)
            gaps.append(self.gap(learner))
        late = np.mean([gap for gap, count in zip(gaps, played, strict=True) if count > (1.0 - LATE) * budget])
        return {"gap": float(late), "log_gap": float(np.log(late))}


def on_system(method: PolicyAscent, step_size: float) -> Ascent:
    made = replace(method, step_size=replace(method.step_size, initial=step_size))
    return Ascent(method=made, problem=LQR(), gap=gap_of_gain, batch=10, trajectories=4000)


def on_chain(method: PolicyAscent, step_size: float) -> Ascent:
    made = replace(method, step_size=replace(method.step_size, initial=step_size))
    return Ascent(method=made, problem=Chain(), gap=gap_of_table, batch=1, trajectories=600)


def median_difference(metric: str, first: str, second: str) -> Gate:
    """The MEDIAN over seeds of first − second, runs paired by seed, is above 0."""

    def test(results: Results) -> Effect:
        estimate, low, high = bootstrap_interval(np.subtract(*results.pairs(metric, first, second)), np.median)
        passed = True if low > 0.0 else False if high < 0.0 else None
        return Effect(estimate=estimate, low=low, high=high, level=0.95, passed=passed)

    text = f"median paired difference of {metric}, {first} minus {second}, above 0"
    name = f"median of {metric}: {first} − {second} > 0"
    return Gate(name=name, text=text, test=test, metric=metric, arms=(first, second))


claim = Claim(
    slug="n-pg-igt",
    paper="2302.01734",
    text=(
        "With the same number of trajectories N-PG-IGT and N-HARPG end nearer the optimum of a linear system than the plain "
        "policy gradient."
    ),
    arms={
        "N-PG-IGT": on_system(n_pg_igt.method(), 1.0),
        "PG": on_system(n_pg_igt.pg(), 3e-4),
        "N-HARPG": on_system(n_pg_igt.n_harpg(), 1.0),
        "NSGDM": on_system(n_pg_igt.nsgdm(), 1.0),
        "N-PG-IGT, chain": on_chain(n_pg_igt.method(), 1.0),
        "PG, chain": on_chain(n_pg_igt.pg(), 0.3),
        "HARPG, chain": on_chain(n_pg_igt.harpg(), 0.3),
    },
    gates=(
        paired_difference("log_gap", "PG", "N-PG-IGT", above=0.0),
        median_difference("log_gap", "PG", "N-HARPG"),
        paired_difference("log_gap", "NSGDM", "N-PG-IGT", above=0.0, required=False),
        paired_difference("gap", "NSGDM", "N-PG-IGT", above=0.0, required=False),
        paired_difference("log_gap", "N-HARPG", "N-PG-IGT", above=0.0, required=False),
        paired_difference("log_gap", "PG, chain", "N-PG-IGT, chain", above=0.0, required=False),
        paired_difference("log_gap", "HARPG, chain", "N-PG-IGT, chain", above=0.0, required=False),
    ),
    seeds=range(20),
    budget=(
        "4000 trajectories of 20 steps an arm and seed on the linear system, ten an estimate, and 600 on the chain, one an "
        "estimate; both trajectories of N-HARPG count"
    ),
    tuning=(
        "the first step size of every arm is the best of five values a factor of about 3 apart (plain gradient on the "
        "system: 3e-5 to 3e-3, all others 0.03 to 3), by the mean log gap of 20 to 40 runs with generators that are not scored"
    ),
)
