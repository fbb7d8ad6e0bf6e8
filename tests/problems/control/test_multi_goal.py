import numpy as np
import pytest
import torch

from policyopt import registry
from policyopt.problems.control.multi_goal import GOALS, MultiGoal, goal_distances


def test_a_step_by_hand():
    environment = MultiGoal().make(3, 0)
    environment.position = np.array([[3.5, 0.0], [0.0, -1.0], [0.0, 5.9]])
    step = environment.step(np.array([[0.5, 0.0], [3.0, -0.5], [0.0, 1.0]], np.float32))
    assert step.next_observations.tolist() == [[4.0, 0.0], [1.0, -1.5], [0.0, 6.0]]  # clipped to the box and the square
    assert step.terminated.tolist() == [True, False, True] and not step.truncated.any()
    away = np.hypot(1.0, 3.5)
    assert step.rewards.tolist() == pytest.approx([1 - 0.1 - 0.0025, -0.1 * away - 0.0125, 1 - 0.1 - 0.01], abs=1e-6)
    assert np.abs(environment.observations[[0, 2]]).max() < 1.0 and environment.elapsed.tolist() == [0, 1, 0]


def test_the_goals_are_equally_good():
    returns = []
    for goal in GOALS:
        environment = MultiGoal().make(1, 0)
        environment.position[:] = 0.0
        total = 0.0
        for i in range(4):
            step = environment.step((goal / 5.0)[None].astype(np.float32))
            total += float(step.rewards[0])
            assert bool(step.terminated[0]) is (i == 3)
        returns.append(total)
    assert returns == pytest.approx([returns[0]] * 4, abs=1e-6)
    assert goal_distances(np.zeros((1, 2))).tolist() == [[5.0] * 4]


def test_an_episode_is_cut_after_fifteen_steps():
    environment = MultiGoal().make(2, 0)
    cut = [environment.step(np.zeros((2, 2), np.float32)).truncated.tolist() for _ in range(15)]
    assert cut == [[False, False]] * 14 + [[True, True]]


def test_starts_are_near_the_middle_and_a_saved_state_goes_on():
    first, second = MultiGoal().make(4000, 3), MultiGoal().make(4000, 3)
    assert first.observations.std() == pytest.approx(0.1, rel=0.05)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 4000, 2)).astype(np.float32)
    for action in actions[:16]:
        first.step(action)
    second.load_state_dict(first.state_dict())
    for action in actions[16:]:
        one, two = first.step(action), second.step(action)
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert np.array_equal(first.observations, second.observations)


def test_it_is_found_by_name_and_refuses_bad_input():
    problem = registry.problem("multi-goal", episodes=3)
    assert problem == MultiGoal(episodes=3)
    found = problem.evaluate(lambda o, m, r, g: (torch.ones(3, 2), {}, m), torch.Generator())
    assert found["eval/episode_length"] == 15.0 and found["eval/return"] < 0.0
    with pytest.raises(ValueError, match="no options"):
        registry.problem("multi-goal:goals=3")
    with pytest.raises(ValueError, match="finite actions"):
        problem.make(1, 0).step(np.full((1, 2), np.nan, np.float32))
