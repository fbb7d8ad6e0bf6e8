"""Fitted Q evaluation: values worked by hand, what ends a sum, and errors against simulators whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from policyopt.learners.fitted_q import FittedQ, Fitting
from policyopt.models.q_functions import QFunctions
from policyopt.problems.control.checker import HORIZON, Checker, towards_goal
from policyopt.problems.control.environments import Spaces, episode_returns
from policyopt.rollouts.logs import beginning, logged
from policyopt.types import Transitions, generator

QUICK = FittedQ(model=QFunctions(heads=4, width=32), updates=600, batch=64, polyak=0.1, gamma=0.9)
CHAIN = Spaces(observation=1, action=1, discrete=False)


class Always:
    """Acts by a function of the observation; samples are the actions of both signs."""

    def __init__(self, action, mixed=False):
        self.action, self.mixed = action, mixed

    def act(self, observation, memory, rng, greedy=False):
        action = self.action(observation)
        if self.mixed and not greedy:
            action = action * (2.0 * torch.randint(2, action.shape, generator=rng) - 1.0)
        return action, {}, memory


def chain(length, count, terminated=True):
    """Episodes 0, 1, … length − 1 along a line; the reward is the action, −1 or 1, drawn anew."""
    place = torch.arange(length).repeat(count).float()[:, None]
    last = torch.arange(length).repeat(count) == length - 1
    action = 2.0 * torch.randint(2, (len(place), 1), generator=generator(0, "chain")).float() - 1.0
    return Transitions(
        observation=place,
        action=action,
        reward=action[:, 0].clone(),
        next_observation=place + 1.0,
        terminated=last & terminated,
        truncated=last & (not terminated),
        episode=torch.arange(count).repeat_interleave(length),
        batch_size=[len(place)],
    )


def one(observation):
    return torch.ones(len(observation), 1)


def test_a_chain_s_value_is_the_sum_of_its_rewards():
    found = QUICK(chain(4, 40), Always(one), CHAIN, seed=0)
    assert found.value == pytest.approx(1 + 0.9 + 0.81 + 0.729, abs=0.1)
    assert found.low <= found.value <= found.high and found.heads.shape == (4,)
    assert found.outside == 0.0 and found.warning is None


@pytest.mark.parametrize(("horizon", "value"), [(2, 2.0), (4, 4.0), (9, 4.0)])
def test_with_a_horizon_the_value_is_the_undiscounted_return_of_so_many_steps(horizon, value):
    found = replace(QUICK, horizon=horizon)(chain(4, 40), Always(one), CHAIN, seed=0)
    assert found.value == pytest.approx(value, abs=0.25)


def test_the_opposite_policy_is_worth_the_opposite_and_samples_their_mean():
    opposite = QUICK(chain(4, 40), Always(lambda seen: -one(seen)), CHAIN, seed=0)
    assert opposite.value == pytest.approx(-3.439, abs=0.15)
    mean = replace(QUICK, samples=8)(chain(4, 40), Always(one, mixed=True), CHAIN, seed=0)
    assert abs(mean.value) < 0.5


def test_a_cut_is_no_end():
    """What follows the last step of a log that was cut is worth as much as the same place elsewhere."""

    def circle(terminated):
        data = chain(1, 80, terminated)
        return data.replace(next_observation=data.observation)

    ended, cut = (QUICK(circle(terminated), Always(one), CHAIN, seed=0).value for terminated in (True, False))
    assert ended == pytest.approx(1.0, abs=0.05) and cut == pytest.approx(10.0, abs=1.0)


def test_rewards_may_have_any_scale():
    data = chain(4, 40)
    small, large = (QUICK(data.replace(reward=c * data.reward), Always(one), CHAIN, seed=0) for c in (1e-3, 1e3))
    assert small.value * 1e6 == pytest.approx(large.value, rel=1e-3)


def test_choices_are_one_hot():
    data = chain(3, 40)
    data = data.replace(action=(data.action[:, 0] > 0).long())
    spaces = Spaces(observation=1, action=2, discrete=True)
    found = QUICK(data, Always(lambda seen: torch.ones(len(seen), dtype=torch.long)), spaces, seed=0)
    assert found.value == pytest.approx(2.71, abs=0.1)


def test_each_head_has_its_own_episodes():
    data = chain(3, 50)
    fitting = Fitting(QUICK, data, Always(one), CHAIN, seed=0)
    assert fitting.counts.sum(1).tolist() == [50.0] * 4 and len(fitting.counts.unique(dim=0)) == 4
    of_row = torch.diff(fitting.cumulative, prepend=torch.zeros(4, 1), dim=1)
    assert torch.equal(of_row, fitting.counts[:, data.episode])


def test_the_value_is_that_of_first_observations_of_complete_episodes():
    data = beginning(chain(4, 41), 4 * 40 + 2)
    data.observation[-2:] = 50.0  # the incomplete episode begins elsewhere
    fitting = Fitting(QUICK, data, Always(one), CHAIN, seed=0)
    whole = fitting.values(torch.arange(0, 160, 4))
    counts = fitting.counts[:, :40].float()
    with torch.no_grad():
        first = fitting.target(fitting.seen[:1], torch.ones(1, 1))
    assert torch.allclose(whole, fitting.scale * (first * counts).sum(1) / counts.sum(1), atol=1e-4)
    assert QUICK(data, Always(one), CHAIN, seed=0).value == pytest.approx(3.439, abs=0.25)


def test_acting_outside_the_data_is_said():
    data = chain(4, 40)
    data.action *= torch.rand(160, 1, generator=generator(0, "a"))
    spaces = Spaces(observation=1, action=1, discrete=False)
    inside, outside = (
        replace(QUICK, updates=1)(data, Always(lambda seen, size=size: size * one(seen)), spaces, seed=0)
        for size in (0.5, 3.0)
    )
    assert inside.warning is None and outside.outside == 1.0
    assert "100% of the data's states" in outside.warning


class Straight:
    """Towards the goal in steps of a size."""

    def __init__(self, size):
        self.size = size

    def act(self, observation, memory, rng, greedy=False):
        return self.size * torch.from_numpy(towards_goal(observation.numpy().astype(float))).float(), {}, memory


class HalfGood(Straight):
    """Every other action is random."""

    def act(self, observation, memory, rng, greedy=False):
        uniform = 2.0 * torch.rand(len(observation), 2, generator=rng) - 1.0
        good = torch.rand(len(observation), 1, generator=rng) < 0.5
        return torch.where(good, super().act(observation, memory, rng)[0], uniform), {}, memory


@pytest.mark.parametrize("size", [0.5, 1.0])
def test_the_error_on_a_simulator_whose_truth_is_known(size):
    """Returns of random actions are about −37: an error of 1 is small, and the two policies are told apart."""
    data = logged(HalfGood(1.0), Checker(), 4000, 0, generator(0, "log"), lambda _: None)
    settings = FittedQ(model=QFunctions(heads=4, width=64), horizon=HORIZON, updates=1500)
    found = settings(data, Straight(size), Checker().spaces, seed=0)
    truth = episode_returns(Checker().make(2000, 99), Straight(size).act, generator(0, "t"))[0].mean()
    assert found.value == pytest.approx(float(truth), abs=1.0)
    assert np.isfinite([found.low, found.high]).all()


def test_bad_input():
    data = chain(4, 3)
    with pytest.raises(ValueError, match="column episode"):
        QUICK(data.replace(episode=None), Always(one), CHAIN, seed=0)
    with pytest.raises(ValueError, match="no episode of the data is complete"):
        QUICK(data.replace(complete=torch.zeros(12, dtype=torch.bool)), Always(one), CHAIN, seed=0)
    with pytest.raises(ValueError, match="gamma is from 0 to below 1"):
        FittedQ(gamma=1.0)
    with pytest.raises(ValueError, match="horizon is a positive"):
        FittedQ(horizon=0)
    with pytest.raises(ValueError, match="must be positive"):
        FittedQ(updates=0)
