"""What T-PPO's and P3O's studies measure: heavy tails, simulated time, the time to a target, the frontier."""

from __future__ import annotations

import pytest

from policyopt.studies.preferences import frontier
from policyopt.studies.t_ppo import LONGEST, PER_TOKEN, HeavyTailed, spent_time, time_to
from policyopt.types import Clock


def test_most_sums_are_short_and_some_are_long() -> None:
    problem = HeavyTailed(seed=3)
    terms = [len(chain.results) + 1 for chain in problem.chains(range(2000))]
    assert min(terms) == 2 and max(terms) == LONGEST
    assert sum(n <= 4 for n in terms) > 0.6 * len(terms) > 20 * sum(n == LONGEST for n in terms) > 0
    prompts, answers = problem.prompts(range(50)), problem.demonstrations(range(50))
    right = problem.score(range(50), [str(sum(map(int, str(p).rstrip("=").split("+"))) % 10) for p in prompts])
    assert not right["accuracy"].any()  # an answer needs its mark
    assert [text.count(",") + 2 for text in answers] == terms[:50]


def test_simulated_time() -> None:
    clock = Clock(spent={"positions": 10.0, "tokens": 200.0, "forward_tokens": 300.0})
    assert spent_time(clock, epochs=2) == pytest.approx(10.0 + 2 * 500 * PER_TOKEN)


def test_the_time_to_a_target() -> None:
    assert time_to(0.5, [0.0, 10.0, 20.0], [0.2, 0.4, 0.6]) == pytest.approx(15.0)
    assert time_to(0.9, [0.0, 10.0, 20.0], [0.2, 0.4, 0.6]) == 20.0


def test_a_frontier_is_the_best_within_a_divergence() -> None:
    points = [(0.0, 0.0), (2.0, 2.0), (1.0, 3.0)]  # (reward, divergence)
    assert frontier(points, [1.0]) == pytest.approx(1.0)
    assert frontier(points, [1.0, 2.5, 9.0]) == pytest.approx((1.0 + 2.0 + 2.0) / 3)
