import numpy as np
import pytest

from policyopt.learners.tabular import Bernstein, Optimistic, Unconstrained
from policyopt.methods import ucbvi
from policyopt.problems.decision.tabular import random_mdp


def test_nothing_holds_it_back():
    method = ucbvi.method()
    assert (method.exploration, method.requirement, method.bonus) == (
        Optimistic(),
        Unconstrained(),
        Bernstein(scale=0.1),
    )


def test_it_tries_everything_and_finds_the_optimal_policy():
    problem = random_mdp(states=2, actions=2, horizon=2, concentration=1.0, seed=0)
    learner = ucbvi.method().learner(problem, seed=0)
    metrics = [learner.step() for _ in range(400)]
    assert (learner.counts.visits[0, 0] > 0).all()
    assert problem.value(learner.policy.probabilities)[0] == pytest.approx(problem.optimal_value, abs=1e-9)
    assert metrics[0]["value/optimistic"] == problem.horizon
    assert metrics[-1]["value/optimistic"] < problem.horizon
    assert all(each["cost/env_steps"] == problem.horizon for each in metrics)
    assert np.mean([each["reward/mean"] for each in metrics[-100:]]) > 0.9 * problem.optimal_value


def test_a_smaller_bonus_leaves_less_optimism():
    problem = random_mdp(seed=1)
    learner = ucbvi.method().learner(problem, seed=0)
    for _ in range(300):
        learner.step()
    assert learner.optimistic_value > problem.optimal_value
