import numpy as np
import pytest
import torch

from policyopt.credit.scaling import RewardScaling, SingleSteps, merge_moments, with_scores
from policyopt.models.control import MLP
from policyopt.problems.control.environments import GymnasiumProblem
from policyopt.problems.control.point_mass import PointMass
from policyopt.rollouts.vector import Vector
from policyopt.types import Clock, Rollouts


def collect(problem, collector, policy=None, times=1, memory=None, clock=None):
    policy = policy or MLP(hidden=(8,), standardize=False).build(problem, 0)
    memory, clock = memory or collector.memory(), clock or Clock(seed=3)
    batches = []
    for _ in range(times):
        made = collector(policy, problem, clock, memory)
        clock.advance(made.metrics, None)
        batches.append(made.batches["rollouts"])
    return batches, memory, clock, policy


def test_columns_and_their_meaning():
    problem, collector = GymnasiumProblem(id="CartPole-v1"), Vector(environments=3, steps=40, gamma=0.9)
    (batch,), _, _, policy = collect(problem, collector)
    assert batch.observations.shape == (3, 40, 4)
    assert batch.mask.all()
    assert batch.terminated.any()
    torch.testing.assert_close(batch.discount, 0.9 * (~batch.terminated).float())
    logp = policy.evaluate(batch).logp
    torch.testing.assert_close(batch.behaviour_logp, logp)
    follows = ~(batch.terminated | batch.truncated)[:, :-1]
    same = (batch.observations[:, 1:] == batch.next_observations[:, :-1]).all(-1)
    assert (same == follows).all()  # where an episode ends, next_observations is its end and not the new start


def test_environments_go_on_between_collections():
    problem = GymnasiumProblem(id="Pendulum-v1")
    (one, two), *_ = collect(problem, Vector(environments=2, steps=7), times=2)
    assert (two.observations[:, 0] == one.next_observations[:, -1]).all()


@pytest.mark.parametrize("problem", [GymnasiumProblem(id="CartPole-v1"), PointMass()])
def test_resume_is_bit_identical(problem):
    collector = Vector(environments=3, steps=33)
    _, memory, clock, policy = collect(problem, collector, times=2)
    state, time = memory.state_dict(), clock.state_dict()
    (want,), *_ = collect(problem, collector, policy, memory=memory, clock=clock)
    again, later = collector.memory(), Clock()
    again.load_state_dict(state)
    later.load_state_dict(time)
    (got,), *_ = collect(problem, collector, policy, memory=again, clock=later)
    for name in ("observations", "actions", "rewards", "next_observations", "truncated", "behaviour_logp"):
        assert torch.equal(getattr(want, name), getattr(got, name)), name
    assert (memory.earned == again.earned).all()


def test_vector_rewards_and_finished_episodes():
    collector = Vector(environments=2, steps=50)
    policy = MLP(hidden=(8,), standardize=False).build(PointMass(), 0)
    made = collector(policy, PointMass(), Clock(seed=0), collector.memory())
    batch = made.batches["rollouts"]
    assert batch.rewards.shape == (2, 50, 3)
    assert batch.truncated[:, -1].all()
    assert (batch.discount == 0.99).all()  # cut, not terminated: the critic bootstraps
    assert made.metrics["episode/return"] == pytest.approx(float(batch.rewards.sum((1, 2)).mean()), rel=1e-5)
    assert made.metrics["cost/env_steps"] == 100


def test_standardization_holds_still_within_a_step():
    problem, collector = GymnasiumProblem(id="Pendulum-v1"), Vector(environments=2, steps=30)
    policy = MLP(hidden=(8,), standardize=True).build(problem, 0)
    batches, *_ = collect(problem, collector, policy, times=2)
    torch.testing.assert_close(policy.evaluate(batches[1]).logp, batches[1].behaviour_logp)
    seen = policy.standardization
    everything = torch.cat([b.observations.flatten(0, 1) for b in batches]).double()
    torch.testing.assert_close(seen.mean, everything.mean(0))
    torch.testing.assert_close(seen.squares / seen.count, everything.var(0, unbiased=False))
    torch.testing.assert_close(seen.shift, batches[0].observations.flatten(0, 1).mean(0))  # what is in use lags behind


def test_moments_merge_exactly():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5
    state = (torch.tensor(0.0, dtype=torch.float64), torch.zeros(3).double(), torch.zeros(3).double())
    for piece in x.split([1, 40, 59]):
        state = merge_moments(*state, piece)
    torch.testing.assert_close(state[1], x.mean(0))
    torch.testing.assert_close(state[2] / 100, x.var(0, unbiased=False))


def scaled(rewards, discount, ended, part, memory):
    n, t = rewards.shape[:2]
    batch = Rollouts(
        actions=torch.zeros(n, t),
        mask=torch.ones(n, t, dtype=torch.bool),
        rewards=rewards,
        discount=discount,
        terminated=ended,
        truncated=torch.zeros_like(ended),
        batch_size=[n],
    )
    return part(batch, memory)


def test_rewards_are_scaled_by_the_deviation_of_running_returns():
    part, rewards = RewardScaling(), torch.tensor([[1.0, 2.0, 3.0]])
    ended = torch.tensor([[False, True, False]])
    memory = part.memory()
    made = scaled(rewards, torch.full((1, 3), 0.5), ended, part, memory)
    deviation = np.std([1.0, 2.5, 3.0])  # the episode ends after the second step
    torch.testing.assert_close(made.rewards, rewards / deviation)
    assert made.scores["reward_scale"].tolist() == pytest.approx([deviation])
    memory_2 = part.memory()
    memory_2.load_state_dict(memory.state_dict())
    twice = [scaled(rewards, torch.full((1, 3), 0.5), ended, part, m).rewards for m in (memory, memory_2)]
    assert torch.equal(*twice)
    goes_on = np.std([1.0, 2.5, 3.0, 2.5, 3.25, 3.0])  # 3 · 0.5 + 1 and so on
    torch.testing.assert_close(twice[0], rewards / goes_on)


def test_single_steps_are_rows():
    n, t = 2, 3
    batch = Rollouts(
        actions=torch.arange(6).view(n, t),
        mask=torch.ones(n, t, dtype=torch.bool),
        advantage=torch.arange(6.0).view(n, t),
        rewards=torch.zeros(n, t),
        group=torch.tensor([7, 8]),
        batch_size=[n],
    )
    batch = with_scores(batch, margin=torch.tensor([[1.0], [2.0]]), gain=torch.arange(12.0).view(n, t, 2))
    rows = SingleSteps()(batch)[torch.tensor([4, 1])]
    assert rows.actions.tolist() == [[4], [1]]
    assert rows.group.tolist() == [8, 7]
    assert rows.scores["margin"].tolist() == [[2.0], [1.0]]
    assert rows.scores["gain"].tolist() == [[8.0, 9.0], [2.0, 3.0]]
    assert rows.rewards is None


def test_bad_sizes():
    with pytest.raises(ValueError, match="gamma in"):
        Vector(gamma=1.5)
    with pytest.raises(ValueError, match="no control problem"):
        MLP().build(object(), 0)
    with pytest.raises(ValueError, match="no environments to play in"):
        Vector().memory().start(object(), 2, 0)
