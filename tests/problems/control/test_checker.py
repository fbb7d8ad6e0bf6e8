import numpy as np
import pytest
import torch

from policyopt.problems.control.checker import Checker, parse, towards_goal
from policyopt.problems.control.environments import episode_returns


def test_the_step_by_hand():
    environment = Checker().make(2, 0)
    environment.position[:] = [[8.0, 8.0], [0.5, 5.0]]
    step = environment.step(np.array([[0.6, 0.7], [-3.0, 0.5]]))
    np.testing.assert_allclose(step.next_observations, [[8.6, 8.7], [0.0, 5.5]], rtol=1e-6)
    assert step.terminated.tolist() == [True, False]
    assert step.rewards.tolist() == [0.0, -1.0]
    assert (environment.observations[0] != step.next_observations[0]).any()  # begins anew


def test_episodes_are_cut_after_forty_steps():
    environment = Checker().make(3, 1)
    environment.position[:] = 0.0
    steps = [environment.step(np.zeros((3, 2))) for _ in range(40)]
    assert [s.truncated.all() for s in steps] == [False] * 39 + [True]


def test_every_other_cell_is_good():
    problem, rng = Checker(), np.random.default_rng(0)
    for cell, good in (((2.5, 4.5), True), ((2.5, 3.5), False)):
        position = np.tile(cell, (2000, 1))
        error = problem.behaviour(position, rng) - towards_goal(position)
        assert (np.abs(error.mean(0)) < 0.1).all() == good
        assert (error.std() < 0.25) == good


@pytest.mark.parametrize("good", [0.0, 0.3, 1.0])
def test_the_share_of_good_actions(good):
    position = np.tile([2.0, 5.0], (4000, 1))
    near = (
        np.abs(Checker(good=good).behaviour(position, np.random.default_rng(0)) - towards_goal(position)).max(1) < 0.6
    )
    assert near.mean() == pytest.approx(good + (1 - good) * near_by_chance(), abs=0.05)


def near_by_chance():
    uniform = np.random.default_rng(1).uniform(-1.0, 1.0, (4000, 2))
    return (np.abs(uniform - towards_goal(np.array([[2.0, 5.0]]))).max(1) < 0.6).mean()


def test_data_and_state_repeat_with_the_seed():
    one, same, other = (Checker(seed=s, logged=350).transitions() for s in (1, 1, 2))
    assert len(one) == 350 and torch.equal(one.observation, same.observation) and torch.equal(one.action, same.action)
    assert not torch.equal(one.observation, other.observation)
    first, second = Checker().make(4, 3), Checker().make(4, 3)
    for _ in range(50):
        first.step(np.ones((4, 2)))
    second.load_state_dict(first.state_dict())
    for _ in range(50):
        a, b = first.step(np.ones((4, 2))), second.step(np.ones((4, 2)))
        assert all((x == y).all() for x, y in zip(a, b, strict=True))


def test_the_straight_way_is_short():
    returns, _ = episode_returns(
        Checker().make(200, 0),
        lambda seen, memory, rng, greedy: (torch.from_numpy(towards_goal(seen.numpy())), {}, memory),
        torch.Generator(),
    )
    assert -6.0 < returns.mean() < -4.0


def test_bad_settings():
    assert parse("good=0.3,seed=4") == Checker(good=0.3, seed=4)
    for text, message in (
        ("god=1", "did you mean 'good'"),
        ("seed=x", "cannot read seed=x"),
        ("good=2", "from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(text)
