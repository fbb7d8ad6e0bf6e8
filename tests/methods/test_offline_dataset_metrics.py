"""Trajectory quality and coverage in numbers."""

import math

import numpy as np
import pytest
import torch

from policyopt.methods.offline_dataset_metrics import (
    Limits,
    coverage,
    digitized,
    limits,
    log_coverage,
    mixed,
    performance,
    summary,
    trajectory_quality,
    unique_pairs,
    unique_states,
)
from policyopt.rollouts.logs import beginning
from policyopt.types import Transitions


def log(states, actions, rewards, lengths):
    episode = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    last = torch.diff(episode, append=torch.tensor([-1])) != 0
    states = torch.as_tensor(states, dtype=torch.float32).reshape(len(episode), -1)
    return Transitions(
        observation=states,
        action=torch.as_tensor(actions),
        reward=torch.as_tensor(rewards, dtype=torch.float32),
        next_observation=states,
        terminated=last,
        truncated=torch.zeros_like(last),
        episode=episode,
        batch_size=[len(episode)],
    )


def random_log(seed, episodes=20, length=10):
    rng = np.random.default_rng(seed)
    n = episodes * length
    return log(rng.normal(size=(n, 2)), rng.integers(3, size=n), rng.normal(size=n), [length] * episodes)


def rows(data, order):
    """The episodes of 10 rows in another order, numbered anew."""
    index = torch.cat([torch.arange(10) + 10 * i for i in order])
    return data[index].replace(episode=torch.arange(len(index)) // 10)


def test_quality_in_numbers():
    assert trajectory_quality(torch.tensor([10.0, 30.0, 50.0]), 9.0, 100.0) == pytest.approx(0.230769, abs=1e-6)
    assert trajectory_quality(torch.tensor([9.0, 9.0]), 9.0, 100.0) == 0.0
    assert performance(np.array([[0.0, 8.0, 4.0], [0.0, 2.0, 10.0]]), 2.0, 12.0) == pytest.approx(50.0)


def test_coverage_in_numbers():
    assert coverage(250, 1000) == 0.25
    assert log_coverage(250, 1000) == pytest.approx(0.799313, abs=1e-6)


def test_a_data_set_covers_itself_and_a_copy_adds_nothing():
    data = random_log(0)
    found = summary(data, random=0.0, best=1.0, reference=data)
    assert found.coverage == found.log_coverage == 1.0
    twice = rows(data, [*range(20), *range(20)])
    again = summary(twice, random=0.0, best=1.0)
    assert (again.pairs, again.states) == (found.pairs, found.states)
    assert again.quality == pytest.approx(found.quality)


def test_the_order_of_episodes_does_not_matter():
    data = random_log(1)
    one, other = (summary(d, 0.0, 1.0) for d in (data, rows(data, np.random.default_rng(0).permutation(20))))
    assert (one.pairs, one.states) == (other.pairs, other.states)
    assert one.quality == pytest.approx(other.quality)
    assert one.positive_variance == pytest.approx(other.positive_variance)


def test_bins():
    assert digitized(np.array([-5.0, 0.0, 1e-4, 0.5, 1.0, 7.0]), 0.0, 1.0).tolist() == [0, 1, 1, 50, 100, 100]
    data = log([0.0, 0.5, 0.501, 0.5, 1.0], [0, 1, 1, 0, 1], [0.0] * 5, [5])
    assert unique_pairs(data) == 4
    assert unique_states(data) == 3


def test_counting_agrees_with_rows_as_tuples():
    data, within = random_log(2, episodes=200), Limits(np.array([-2.0, -2.0, 0.0]), np.array([2.0, 2.0, 2.0]))
    numbers = np.concatenate([data.observation.numpy(), data.action.numpy()[:, None]], 1)
    bins = [digitized(c, low, high, 10) for c, low, high in zip(numbers.T, *within, strict=True)]
    assert unique_pairs(data, within, 10) == len(set(zip(*(b.tolist() for b in bins), strict=True)))
    assert limits(data).low.shape == (3,)


def test_the_mixture():
    random, expert = random_log(3), random_log(4)
    joined = mixed(random, expert)
    assert len(joined) == 200
    assert torch.equal(joined.observation[:160], random.observation[:160])
    assert torch.equal(joined.observation[160:], expert.observation[:40])
    assert joined.episode.unique().tolist() == list(range(20))
    assert bool(joined.complete.all())
    cut = mixed(random_log(3)[:197], expert, 0.75)
    assert len(cut) == 197 and cut.episode[~cut.complete].unique().tolist() == [14, 19]
    assert cut.truncated.nonzero()[:, 0].tolist() == [147, 196] and not bool(summary(cut).returns[14] == 0.0)


def test_scaled_rewards_leave_quality_as_it_is_and_shifted_ones_do_not():
    data = log(np.arange(6.0), [0] * 6, [1.0, 2.0, 3.0, 0.0, 1.0, 5.0], [2, 4])
    low, high = log([0.0] * 4, [0] * 4, [0.0, 1.0, 0.0, 0.0], [3, 1]), log([0.0] * 3, [0] * 3, [5.0, 6.0, 7.0], [2, 1])

    def quality(change):
        means = [float(summary(d.replace(reward=change(d.reward)), 0.0, 1.0).returns.mean()) for d in (low, high)]
        return summary(data.replace(reward=change(data.reward)), *means).quality

    assert quality(lambda r: 3.0 * r) == pytest.approx(quality(lambda r: r))
    assert quality(lambda r: r + 1.0) != pytest.approx(quality(lambda r: r), abs=1e-3)


def test_an_episode_that_the_log_cuts_counts_for_coverage_alone():
    data = beginning(log(np.arange(8.0), [0] * 8, [1.0] * 8, [2, 6]), 6)
    found = summary(data, 0.0, 1.0)
    assert found.returns.tolist() == [2.0] and found.lengths.tolist() == [2]
    assert (found.episodes, found.rows, found.pairs) == (2, 6, 6)


def test_a_log_without_a_complete_episode_has_coverage_and_no_quality():
    found = summary(beginning(log(np.arange(8.0), [0] * 8, [1.0] * 8, [8]), 6), 0.0, 1.0)
    assert math.isnan(found.quality) and found.pairs == 6 and len(found.returns) == 0


def test_without_references_there_is_no_share():
    found = summary(random_log(5))
    assert math.isnan(found.quality) and math.isnan(found.coverage) and found.pairs > 100


def test_bad_input():
    with pytest.raises(ValueError, match="one size"):
        summary(random_log(0), reference=random_log(0, episodes=3))
    with pytest.raises(ValueError, match="different reference returns"):
        trajectory_quality(torch.ones(2), 3.0, 3.0)
    with pytest.raises(ValueError, match="at least two"):
        log_coverage(1, 1)
    with pytest.raises(ValueError, match="needs 40 expert"):
        mixed(random_log(0), random_log(1)[:30])
