import numpy as np
import pytest
import torch

from policyopt.problems.control.two_gap import HORIZON, TwoGap, move, observe, parse, scripted_action
from policyopt.types import generator


@pytest.mark.parametrize(
    ("start", "action", "end"),
    [
        ((0.2, 0.5), (1.0, -1.0), (0.25, 0.45)),
        ((0.2, 0.5), (7.0, 0.0), (0.25, 0.5)),  # actions are clipped
        ((0.98, 0.01), (1.0, -1.0), (1.0, 0.0)),  # so are positions
        ((0.48, 0.5), (1.0, 0.5), (0.48, 0.525)),  # the wall is closed, it slides along
        ((0.52, 0.5), (-1.0, 0.0), (0.52, 0.5)),  # from the other side as well
        ((0.48, 0.8), (1.0, 0.0), (0.53, 0.8)),  # the upper gap
        ((0.52, 0.2), (-1.0, 0.0), (0.47, 0.2)),  # the lower gap
        ((0.48, 0.74), (1.0, 1.0), (0.53, 0.79)),  # open at the height where the wall is met, 0.76
        ((0.48, 0.84), (1.0, 1.0), (0.48, 0.89)),  # closed there, 0.86
    ],
)
def test_moves(start, action, end):
    assert move(np.array([start]), np.array([action]))[0] == pytest.approx(end)


def walk(height):
    """The script, as a policy."""

    def act(observation, memory, rng, greedy):
        position = (observation.numpy().astype(np.float64) + 1.0) / 2.0
        return torch.from_numpy(scripted_action(position, np.full(len(position), height))), {}, memory

    return act


def test_the_upper_way_leads_to_the_goal_and_the_lower_does_not():
    problem = TwoGap(episodes=20)
    upper = problem.evaluate(walk(0.8), generator(0, "e"))
    lower = problem.evaluate(walk(0.2), generator(0, "e"))
    assert upper["eval/success"] == 1.0
    assert -25.0 < upper["eval/return"] < -15.0
    assert lower == {"eval/return": -50.0, "eval/success": 0.0}


def test_chance_does_not_pass_a_gap():
    def act(observation, memory, rng, greedy):
        return 2.0 * torch.rand(observation.shape, generator=rng) - 1.0, {}, memory

    assert TwoGap(episodes=500).evaluate(act, generator(0, "e"))["eval/success"] == 0.0


def test_rewards_ends_and_new_episodes():
    environment = TwoGap().make(2, seed=0)
    environment.position[0] = (0.80, 0.8)
    result = environment.step(np.array([[1.0, 0.0], [0.0, 0.0]]))
    assert result.rewards.tolist() == [0.0, -1.0]
    assert result.terminated.tolist() == [True, False] and not result.truncated.any()
    assert result.next_observations[0] == pytest.approx(2.0 * np.array([0.85, 0.8]) - 1.0, abs=1e-6)
    assert np.abs(environment.position - [0.1, 0.5]).max() <= 0.02
    for _ in range(HORIZON - 2):
        result = environment.step(np.zeros((2, 2)))
        assert not (result.terminated | result.truncated).any()
    result = environment.step(np.zeros((2, 2)))
    assert result.truncated.tolist() == [False, True] and not result.terminated.any()
    assert environment.elapsed.tolist() == [HORIZON - 1, 0]


def test_a_loaded_state_goes_on_as_the_first():
    first, second = (TwoGap().make(3, seed=s) for s in (4, 9))
    rng = np.random.default_rng(0)
    for _ in range(70):
        first.step(rng.uniform(-1, 1, (3, 2)))
    second.load_state_dict(first.state_dict())
    for _ in range(70):
        action = rng.uniform(-1, 1, (3, 2))
        for one, two in zip(first.step(action), second.step(action), strict=True):
            assert np.array_equal(one, two)
        assert np.array_equal(first.observations, second.observations)


def test_demonstrations_are_what_the_script_does():
    data = TwoGap().transitions()
    assert int(data.terminated.sum()) == 100
    assert torch.equal(data.terminated, data.reward == 0.0)
    upper = data.observation[:, 1] > 0.1
    assert 1500 < int(upper.sum()) < 2500  # about twenty steps each
    stay = data.observation[:, 0] > 0.75
    rest = data.observation[stay & (data.observation[:, 1] < 0)]
    assert rest.mean(0).tolist() == pytest.approx(observe(np.array([[0.9, 0.2]]))[0].tolist(), abs=0.02)
    assert data.action.abs().max() <= 1.0


@pytest.mark.parametrize(("good", "episodes"), [(0.0, 0), (1.0, 40), (0.25, 10)])
def test_the_share_of_good_demonstrations(good, episodes):
    assert int(TwoGap(good=good, demonstrated=40).transitions().terminated.sum()) == episodes


def test_bad_input():
    with pytest.raises(ValueError, match="finite actions of shape"):
        TwoGap().make(2, 0).step(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="finite actions"):
        TwoGap().make(1, 0).step(np.array([[np.nan, 0.0]]))
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        TwoGap(good=2.0)
    with pytest.raises(ValueError, match="must be positive"):
        TwoGap(demonstrated=0)


def test_parse():
    assert parse("good=0.25,seed=3") == TwoGap(good=0.25, seed=3)
    assert parse() == TwoGap()
    with pytest.raises(ValueError, match="option 'goods' is not known; did you mean 'good'"):
        parse("goods=1")
    with pytest.raises(ValueError, match="cannot read"):
        parse("seed=x")
