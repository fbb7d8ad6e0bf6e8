"""Trajectory weighting: its probabilities in numbers, and that any offline method draws by them."""

import math

import pytest
import torch

from policyopt import registry
from policyopt.credit.episodes import episode_lengths, episode_returns, first_rows, numbered
from policyopt.methods.trajectory_weighting import (
    AdvantageWeighted,
    ReturnWeighted,
    TopFraction,
    positive_sided_variance,
    sampled,
    weighted_return,
)
from policyopt.problems.control.checker import Checker
from policyopt.rollouts.replay import Replay
from policyopt.types import Transitions, generator

RETURNS = torch.tensor([0.0, 5.0, 10.0], dtype=torch.float64)
LENGTHS = torch.tensor([2, 1, 3])
START = torch.tensor([[0.3], [-1.0], [2.0]])


def log(returns, lengths, start=None):
    """Each episode earns its return in the first step."""
    episode = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    reward = torch.zeros(len(episode))
    reward[first_rows(episode)] = returns.float()
    observation = torch.zeros(len(episode), 1) if start is None else start[episode]
    last = torch.zeros(len(episode), dtype=torch.bool)
    last[lengths.cumsum(0) - 1] = True
    return Transitions(
        observation=observation,
        action=torch.zeros(len(episode), 2),
        reward=reward,
        next_observation=observation,
        terminated=last,
        truncated=~last & False,
        episode=episode,
        batch_size=[len(episode)],
    )


def test_return_weighting_in_numbers():
    each = ReturnWeighted().per_episode(RETURNS, LENGTHS, START)
    assert each.tolist() == pytest.approx([0.0000151, 0.002241, 0.332576], rel=1e-3)
    assert (each * LENGTHS).tolist() == pytest.approx([0.0000302, 0.002241, 0.997729], rel=1e-3)
    assert float((each * LENGTHS).sum()) == pytest.approx(1.0, abs=1e-12)
    assert weighted_return(each, LENGTHS, RETURNS) == pytest.approx(9.98849, abs=1e-5)


def test_rows_have_the_probability_of_their_episode():
    data = log(RETURNS, LENGTHS)
    row = ReturnWeighted().probabilities(data)
    assert torch.equal(row, ReturnWeighted().per_episode(RETURNS, LENGTHS, START)[data.episode])
    assert episode_returns(data.reward, data.episode).tolist() == [0.0, 5.0, 10.0]
    assert episode_lengths(data.episode).tolist() == [2, 1, 3]
    assert torch.equal(numbered(data.terminated), data.episode)


@pytest.mark.parametrize("sampling", [ReturnWeighted(), AdvantageWeighted()])
def test_equal_returns_are_uniform(sampling):
    each = sampling.per_episode(torch.full((3,), 7.0, dtype=torch.float64), LENGTHS, START)
    assert each.tolist() == pytest.approx([1 / 6] * 3)


def test_limits_of_the_temperature():
    assert ReturnWeighted(temperature=1e9).per_episode(RETURNS, LENGTHS, START).tolist() == pytest.approx([1 / 6] * 3)
    cold = ReturnWeighted(temperature=1e-4).per_episode(RETURNS, LENGTHS, START)
    assert cold.tolist() == pytest.approx([0.0, 0.0, 1 / 3])


@pytest.mark.parametrize("sampling", [ReturnWeighted(), AdvantageWeighted()])
def test_scale_and_shift_of_returns_change_nothing(sampling):
    returns, lengths = torch.tensor([0.0, 5.0, 10.0, 3.0], dtype=torch.float64), torch.tensor([2, 1, 3, 4])
    start = torch.tensor([[0.3], [-1.0], [2.0], [0.5]])
    one, other = (sampling.per_episode(g, lengths, start) for g in (returns, 3.0 * returns - 40.0))
    assert torch.allclose(one, other, atol=1e-10)
    assert one.max() > 2 * one.min()


def test_returns_that_the_start_explains_are_uniform():
    start = torch.rand(50, 3, generator=generator(0, "start"))
    returns = start.double() @ torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64) + 4.0
    lengths = torch.full((50,), 2)
    assert torch.allclose(AdvantageWeighted().per_episode(returns, lengths, start), torch.tensor(0.01).double())
    assert ReturnWeighted().per_episode(returns, lengths, start).max() > 0.05


def test_positive_sided_variance():
    assert positive_sided_variance(RETURNS) == pytest.approx(8.333333)
    assert positive_sided_variance(torch.tensor([0.0, 0.0, 0.0, 10.0])) == pytest.approx(14.0625)


def test_draws_have_their_probabilities():
    data, count = log(RETURNS, LENGTHS), 1_000_000
    memory = Replay(len(data))
    memory.add(data.replace(action=torch.arange(6.0)[:, None]))
    p = ReturnWeighted(temperature=0.5).probabilities(data)
    memory.weigh(p)
    drawn = memory.sample(count, generator(0, "draws")).action[:, 0].long().bincount(minlength=6) / count
    assert bool(((drawn - p).abs() <= 3.0 * (p * (1 - p) / count).sqrt()).all())


def test_the_top_fraction_keeps_two_of_twenty():
    each = TopFraction().per_episode(torch.arange(20.0).double(), torch.full((20,), 4), torch.zeros(20, 1))
    assert each.nonzero()[:, 0].tolist() == [18, 19]
    assert each[18:].tolist() == pytest.approx([1 / 8] * 2)


@pytest.mark.parametrize("sampling", [ReturnWeighted(), AdvantageWeighted(), TopFraction(fraction=0.5)])
def test_incomplete_episodes_are_not_drawn(sampling):
    """Left out of the data they change nothing; an incomplete one may have the best return so far."""
    data = log(torch.tensor([0.0, 99.0, 5.0, 10.0]).double(), torch.tensor([2, 4, 1, 3]), torch.rand(4, 2))
    data = data.replace(complete=data.episode != 1)
    kept = data[data.complete]
    alone = kept.replace(episode=kept.episode - (kept.episode > 1).long(), complete=None)
    p = sampling.probabilities(data)
    assert bool((p[~data.complete] == 0.0).all())
    assert torch.allclose(p[data.complete], sampling.probabilities(alone))
    with pytest.raises(ValueError, match="complete episodes, and this data set has none"):
        sampling.probabilities(data.replace(complete=torch.zeros(10, dtype=torch.bool)))


@pytest.mark.parametrize("method", ["td3-bc", "iql", "bc", "cql"])
def test_an_offline_method_draws_by_the_weights(method):
    class WithEpisodes(Checker):
        def transitions(self):
            data = super().transitions()
            episode = torch.arange(len(data)) // 20
            reward = torch.where(episode == 3, 1.0, 0.0)
            last = torch.arange(len(data)) % 20 == 19
            return data.replace(episode=episode, terminated=last & False, truncated=last, reward=reward)

    learner = sampled(registry.method(method), "return-weighted").learner(WithEpisodes(logged=200), seed=0)
    share = float((learner.memory.sample(2000, generator(0, "s")).reward != 0.0).double().mean())
    assert share == pytest.approx(math.e**10 / (math.e**10 + 9), abs=0.01)
    assert all(torch.isfinite(torch.as_tensor(v)).all() for v in learner.step().values())


def test_bad_input():
    with pytest.raises(ValueError, match="return-weighted"):
        sampled(registry.method("bc"), "return-wieghted")
    with pytest.raises(ValueError, match="offline method"):
        sampled(registry.method("td3"), "uniform")
    with pytest.raises(ValueError, match="column episode"):
        sampled(registry.method("bc"), "return-weighted").learner(Checker(logged=200), seed=0)
    with pytest.raises(ValueError, match="positive"):
        ReturnWeighted(temperature=0.0)
    with pytest.raises(ValueError, match="at most 1"):
        TopFraction(fraction=1.5)
    memory = Replay(6)
    memory.add(log(RETURNS, LENGTHS))
    with pytest.raises(ValueError, match="zero"):
        memory.weigh(torch.zeros(6))
    with pytest.raises(ValueError, match="6 finite weights"):
        memory.weigh(torch.ones(5))
