"""Logs of acting: where episodes end, and which of them the log has wholly."""

import pytest
import torch

from policyopt.credit.episodes import complete_episodes, episode_lengths
from policyopt.problems.control.checker import HORIZON, Checker
from policyopt.rollouts.logs import UniformPolicy, beginning, joined, logged, replayed
from policyopt.rollouts.replay import Replay
from policyopt.rollouts.transitions import checked
from policyopt.types import Transitions, generator


def walked(steps, seed=0):
    problem, moved = Checker(), []
    data = logged(UniformPolicy(problem.spaces), problem, steps, seed, generator(seed, "log"), moved.append)
    return data, moved


def line(lengths, terminated=True):
    """Episodes along a line, each from a place of its own."""
    starts = [10.0 * i + torch.arange(n) for i, n in enumerate(lengths)]
    place = torch.cat(starts)[:, None]
    last = torch.cat([torch.arange(n) == n - 1 for n in lengths])
    return Transitions(
        observation=place,
        action=torch.zeros(len(place), 1),
        reward=torch.ones(len(place)),
        next_observation=place + 1.0,
        terminated=last & terminated,
        batch_size=[len(place)],
    )


def remembered(data, capacity):
    memory = Replay(capacity)
    for row in data.split(1):
        memory.add(row)
    return memory


def test_a_log_is_episodes_of_the_environments_one_after_the_other():
    data, moved = walked(2500)
    assert len(data) == 2500 and sum(moved) == 2500
    ends = data.terminated | data.truncated
    following = ~ends[:-1]
    assert torch.equal(data.observation[1:][following], data.next_observation[:-1][following])
    assert torch.equal(data.episode[1:] - data.episode[:-1], ends[:-1].long())
    assert not bool((data.terminated & data.truncated).any())


def test_what_the_end_of_a_log_cuts_is_truncated_and_incomplete():
    data, _ = walked(2050)  # of two environments side by side
    complete, lengths = complete_episodes(data), episode_lengths(data.episode)
    ended = torch.zeros_like(complete)
    last = torch.diff(data.episode, append=torch.tensor([-1])) != 0
    ended[data.episode[last]] = (data.terminated | data.truncated)[last]
    assert bool(ended.all())
    whole = torch.zeros_like(complete)
    whole[data.episode[last]] = data.terminated[last] | (lengths[data.episode[last]] == HORIZON)
    assert torch.equal(complete, whole) and int((~complete).sum()) == 2


def test_a_log_that_ends_with_an_episode_has_no_incomplete_one():
    class Short(Checker):
        def make(self, n, seed):
            made = super().make(n, seed)
            made.position[:] = 0.0
            return made

    problem = Short()
    data = logged(UniformPolicy(problem.spaces), problem, HORIZON, 0, generator(0, "log"), lambda _: None)
    assert bool(data.truncated[-1]) and bool(data.complete.all())


def test_a_memory_from_its_beginning():
    data = replayed(remembered(line([3, 4, 2]), 100), 9)
    assert data.episode.tolist() == [0] * 3 + [1] * 4 + [2] * 2
    assert bool(data.complete.all()) and not bool(data.truncated.any())


def test_a_memory_whose_episodes_are_cut_by_a_limit():
    data = replayed(remembered(line([3, 4, 2], terminated=False), 100), 9)
    assert data.truncated.nonzero()[:, 0].tolist() == [2, 6, 8]
    assert complete_episodes(data).tolist() == [True, True, False]  # nobody knows whether the last one goes on


@pytest.mark.parametrize(
    ("capacity", "steps", "complete"),
    [
        (100, 6, [True, True]),  # the row before ends an episode
        (100, 5, [False, True]),  # the row before belongs to the first one
        (6, 6, [False, True]),  # the row before is forgotten
        (7, 6, [True, True]),
    ],
)
def test_the_latest_of_a_memory(capacity, steps, complete):
    data = replayed(remembered(line([3, 4, 2]), capacity), steps)
    assert len(data) == steps and complete_episodes(data).tolist() == complete


def test_memories_that_tell_no_episodes():
    with pytest.raises(ValueError, match="holds 9 transitions, 10 were asked for"):
        replayed(remembered(line([3, 4, 2]), 100), 10)
    with pytest.raises(ValueError, match="several environments"):
        replayed(remembered(line([1] * 9), 100), 9)


def test_a_beginning_cuts_an_episode_or_nothing():
    data = replayed(remembered(line([3, 4, 2]), 100), 9)
    cut, whole = beginning(data, 5), beginning(data, 7)
    assert cut.truncated.nonzero()[:, 0].tolist() == [4] and complete_episodes(cut).tolist() == [True, False]
    assert not bool(whole.truncated.any()) and bool(whole.complete.all())
    assert not bool(data.truncated.any())  # the log itself is as it was


def test_joined_logs_count_their_episodes_on():
    first, second = walked(150)[0], replayed(remembered(line([3, 4]), 100), 7)
    second = second.replace(
        observation=second.observation.expand(-1, 2), next_observation=second.observation.expand(-1, 2)
    )
    second = second.replace(action=second.action.expand(-1, 2), complete=None)
    whole = joined([first, second])
    count = int(first.episode[-1]) + 1
    assert len(whole) == 157 and whole.episode[150:].tolist() == [count] * 3 + [count + 1] * 4
    assert torch.equal(whole.complete[:150], first.complete) and bool(whole.complete[150:].all())

    class Joined(Checker):
        def transitions(self):
            return whole

    assert len(checked(Joined())) == 157
