import numpy as np
import pytest
import torch

from policyopt.credit.episodes import episode_lengths, episode_returns, first_rows
from policyopt.problems.control.mixed_walks import (
    CENTRE,
    HORIZON,
    RADIUS,
    MixedWalks,
    WalksToTheCentre,
    parse,
    to_the_centre,
)
from policyopt.rollouts.transitions import checked


def test_the_log_is_whole_episodes_that_end_at_the_centre_or_at_the_limit():
    data = checked(MixedWalks(logged=60, expert=0.5))
    following = ~(data.terminated | data.truncated)[:-1]
    assert torch.equal(data.observation[1:][following], data.next_observation[:-1][following])
    away = np.linalg.norm(data.next_observation.numpy() - CENTRE, axis=1)
    assert np.array_equal(away <= RADIUS, data.terminated.numpy())
    assert np.allclose(data.reward.numpy(), -away / 20.0, atol=1e-6)
    lengths = episode_lengths(data.episode)
    assert len(lengths) == 60 and bool((lengths[data.episode[data.truncated]] == HORIZON).all())


def test_the_first_episodes_are_the_experts():
    data = MixedWalks(logged=60, expert=0.5).transitions()
    returns, lengths = episode_returns(data.reward, data.episode), episode_lengths(data.episode)
    assert bool(data.terminated[first_rows(data.episode) + lengths - 1][:30].all())
    assert float(returns[:30].min()) > float(returns[30:].mean())
    none = MixedWalks(logged=60, expert=0.0).transitions()
    assert float(episode_returns(none.reward, none.episode).mean()) < float(returns[:30].mean()) - 5.0


def test_a_step_by_hand():
    walkers = WalksToTheCentre(2, 0)
    walkers.position[:] = [[0.5, 19.5], [8.0, 10.0]]
    step = walkers.step(np.array([[-1.0, 2.0], [1.5, 0.0]]))
    assert step.next_observations.tolist() == [[0.0, 20.0], [9.0, 10.0]]
    assert step.rewards.tolist() == pytest.approx([-np.sqrt(200) / 20, -0.05])
    assert step.terminated.tolist() == [False, True] and walkers.elapsed.tolist() == [1, 0]
    assert to_the_centre(np.array([[9.5, 10.0], [10.0, 0.0], [0.0, 5.0]])).tolist() == [
        [0.5, 0.0],
        [0.0, 1.0],
        [1.0, 0.5],
    ]


def test_a_saved_state_goes_on_as_before():
    one, other = WalksToTheCentre(3, 1), WalksToTheCentre(3, 2)
    for _ in range(30):
        one.step(np.ones((3, 2)))
    other.seed = 1
    other.load_state_dict(one.state_dict())
    for _ in range(20):
        a, b = (w.step(-np.ones((3, 2))) for w in (one, other))
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_bad_input():
    assert parse("expert=0.1,seed=3") == MixedWalks(expert=0.1, seed=3)
    with pytest.raises(ValueError, match="option 'experts' is not known; did you mean 'expert'"):
        parse("experts=1")
    with pytest.raises(ValueError, match="cannot read seed=x"):
        parse("seed=x")
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        MixedWalks(expert=2)
    with pytest.raises(ValueError, match="must be positive"):
        MixedWalks(logged=0)
    with pytest.raises(ValueError, match="finite actions"):
        MixedWalks().make(1, 0).step(np.array([[np.nan, 0.0]]))
