import pytest
import torch

from policyopt.problems.control.two_gap import TwoGap
from policyopt.rollouts.replay import Interaction, Replay
from policyopt.types import Clock, Transitions, generator


def numbered(first, count, **columns):
    number = torch.arange(first, first + count, dtype=torch.float32)
    return Transitions(
        observation=number[:, None],
        action=number[:, None],
        reward=number,
        next_observation=number[:, None] + 1.0,
        terminated=number < 0,
        **columns,
        batch_size=[count],
    )


def test_the_last_ones_stay():
    memory = Replay(5)
    for first, count in ((0, 2), (2, 2), (4, 4)):
        memory.add(numbered(first, count))
    assert len(memory) == 5
    assert sorted(memory.columns["reward"].tolist()) == [3.0, 4.0, 5.0, 6.0, 7.0]


def test_a_sample_keeps_its_rows_together_and_covers_the_memory():
    memory = Replay(100)
    memory.add(numbered(0, 8))
    batch = memory.sample(4000, generator(0, "batch"))
    assert torch.equal(batch.observation[:, 0], batch.reward)
    assert torch.equal(batch.next_observation, batch.observation + 1.0)
    counts = batch.reward.long().bincount()
    assert len(counts) == 8 and counts.min() > 400  # 500 expected, deviation 21
    assert torch.equal(batch.reward, memory.sample(4000, generator(0, "batch")).reward)


def test_optional_columns_are_kept_where_they_are_given():
    memory = Replay(4)
    memory.add(numbered(0, 2, cost=torch.tensor([5.0, 6.0])))
    assert set(memory.sample(3, generator(0, "b")).cost.tolist()) <= {5.0, 6.0}
    with pytest.raises(ValueError, match="cost"):
        memory.add(numbered(2, 1))


def test_a_data_set_is_drawn_from_where_it_lies():
    data = numbered(0, 6, weight=torch.ones(6))
    memory = Replay.of(data)
    assert len(memory) == 6
    assert all(column.data_ptr() == getattr(data, name).data_ptr() for name, column in memory.columns.items())
    assert set(memory.sample(200, generator(0, "b")).reward.tolist()) == set(range(6))


def test_a_loaded_memory_goes_on_as_the_first():
    memory, loaded = Replay(5), Replay(5)
    memory.add(numbered(0, 3))
    memory.add(numbered(3, 4))
    loaded.load_state_dict(memory.state_dict())
    for each in (memory, loaded):
        each.add(numbered(7, 2))
    assert torch.equal(memory.columns["reward"], loaded.columns["reward"])
    empty = Replay(5)
    empty.load_state_dict(Replay(5).state_dict())
    assert len(empty) == 0


def test_the_state_does_not_change_with_the_memory():
    memory = Replay(2)
    memory.add(numbered(0, 2))
    state = memory.state_dict()
    memory.add(numbered(5, 2))
    assert state["columns"]["reward"].tolist() == [0.0, 1.0]


def test_bad_input():
    with pytest.raises(ValueError, match="at least one"):
        Replay(0)
    with pytest.raises(ValueError, match="do not fit"):
        Replay(2).add(numbered(0, 3))
    with pytest.raises(ValueError, match="nothing has been added"):
        Replay(2).sample(1, generator(0, "b"))
    with pytest.raises(ValueError, match="warm_up=-1"):
        Interaction(warm_up=-1)


class Rightwards:
    """Moves right; what it remembers of its actions is their negative. Warm-up stands still."""

    def act(self, observation, memory, rng):
        action = torch.tensor([1.0, 0.0]).repeat(len(observation), 1)
        return action, {"action": -action}, memory

    def warm_up(self, observation, memory, rng):
        return torch.zeros(len(observation), 2), {}, memory


def test_interaction_warms_up_and_then_acts():
    collector, clock = Interaction(environments=3, steps=2, warm_up=6), Clock(seed=1)
    running = collector.memory()
    for moved in (0.0, 0.1):
        collected = collector(Rightwards(), TwoGap(), clock, running)
        batch = collected.batches["transitions"]
        assert len(batch) == 6
        assert (batch.next_observation - batch.observation)[:, 0].tolist() == pytest.approx([moved] * 6, abs=1e-6)
        assert batch.action[:, 0].unique().tolist() == ([-1.0] if moved else [0.0])
        assert torch.equal(batch.observation[3:], batch.next_observation[:3])
        assert collected.metrics["cost/env_steps"] == 6.0
        clock.advance(collected.metrics, None)


def test_returns_of_the_episodes_that_ended():
    collector, clock = Interaction(environments=2, steps=49, warm_up=0), Clock(seed=1)
    running = collector.memory()
    assert "episode/return" not in collector(Rightwards(), TwoGap(), clock, running).metrics
    assert collector(Rightwards(), TwoGap(), clock, running).metrics["episode/return"] == -50.0
