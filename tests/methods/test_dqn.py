"""DQN and its relatives on logged choices, against textbook targets and a problem that can be solved by hand."""

from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn import functional

from policyopt import registry
from policyopt.learners.off_policy import Round
from policyopt.learners.update import Adam
from policyopt.methods import dqn
from policyopt.models.choices import Choices
from policyopt.problems.control.checker import Checker
from policyopt.problems.control.four_rooms import FourRooms
from policyopt.rollouts.logs import UniformPolicy, logged
from policyopt.types import generator

SLUGS = ("dqn", "dqn:bc", "dqn:cql", "dqn:bcq", "dqn:crr")


@dataclass(frozen=True, kw_only=True)
class Logged(FourRooms):
    def transitions(self):
        return logged(UniformPolicy(self.spaces), FourRooms(), 300, 0, generator(0, "log"), lambda _: None)


def small(method):
    updates = tuple(
        replace(u, model=Choices(width=16, layers=1), optimizer=Adam(learning_rate=3e-3)) for u in method.updates()
    )
    return replace(method, rounds=(Round(updates=updates),), batch=32)


def learner(slug):
    made = small(registry.method(slug)).learner(Logged(), seed=0)
    return made, made.memory.sample(64, generator(0, "b")), next(iter(made.method.updates()))


def test_the_weight_of_crr_is_zero_at_an_advantage_of_zero():
    others = torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 3.0]])
    assert dqn.improves(torch.tensor([2.0, 2.1, 1.9]), others).tolist() == [0.0, 1.0, 0.0]


def test_bcq_always_allows_the_most_probable():
    logits = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.5, 0.0]]).log()
    assert dqn.allowed(logits, 1.0).tolist() == [[True, False, False], [True, True, False]]
    assert dqn.allowed(logits, 0.3).tolist() == [[True, True, False], [True, True, False]]
    assert dqn.best(torch.tensor([[0.0, 1.0, 9.0]]), dqn.allowed(logits[:1], 0.3)).tolist() == [1]


def test_the_target_is_double_q_learning_s():
    made, batch, update = learner("dqn")
    for p in made.agent["target"].parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator(1, "t"))
    following = batch.next_observation
    with torch.no_grad():
        chosen = made.agent["critic"](following).argmax(1)
        wanted = (
            batch.reward + 0.99 * (1 - batch.terminated.float()) * made.agent["target"](following)[range(64), chosen]
        )
    assert torch.allclose(update.target(made.agent, batch, generator(0, "x")), wanted)
    values = made.agent["critic"](batch.observation)[range(64), batch.action]
    assert torch.allclose(
        update.loss(made.agent, batch, generator(0, "x")).value, functional.huber_loss(values, wanted)
    )


def test_cql_adds_the_gap_of_the_log_sum():
    made, batch, update = learner("dqn:cql")
    values = made.agent["critic"](batch.observation)
    gap = (values.exp().sum(1).log() - values[range(64), batch.action]).mean()
    free = replace(update, conservatism=0.0)
    losses = [u.loss(made.agent, batch, generator(0, "x")).value for u in (update, free)]
    assert torch.allclose(losses[0] - losses[1], 0.1 * gap, atol=1e-6)


def test_bcq_without_a_restriction_is_dqn():
    made, batch, _ = learner("dqn:bcq")
    free, restricted = (dqn.DoubleQ(threshold=threshold) for threshold in (0.0, 1.0))
    rng = generator(0, "x")
    assert torch.equal(free.target(made.agent, batch, rng), dqn.DoubleQ().target(made.agent, batch, rng))
    with torch.no_grad():
        imitated = made.agent["actor"](batch.next_observation).argmax(1)
    assert torch.equal(restricted.next_action(made.agent, batch.next_observation, rng), imitated)


def test_crr_imitates_what_improves_alone():
    made, batch, _ = learner("dqn:crr")
    update = next(u for u in made.method.updates() if u.trains == "actor")
    logits = made.agent["actor"](batch.observation)
    weights = update.weights(made.agent, batch, logits.detach(), generator(0, "x"))
    assert set(weights.tolist()) == {0.0, 1.0}
    surprise = functional.cross_entropy(logits, batch.action, reduction="none")
    assert torch.allclose(update.loss(made.agent, batch, generator(0, "x")).value, (weights * surprise).mean())
    sampled = next(u for u in made.method.updates() if u.trains == "critic").next_action(
        made.agent, torch.zeros(20_000, 81), generator(0, "y")
    )
    wanted = made.agent["actor_target"](torch.zeros(1, 81)).softmax(-1)[0]
    assert torch.allclose(sampled.bincount(minlength=4) / 20_000, wanted, atol=0.015)


@pytest.mark.parametrize("slug", SLUGS)
def test_each_learns_acts_and_goes_on_where_it_stopped(slug):
    made, _, _ = learner(slug)
    for _ in range(3):
        assert all(torch.isfinite(torch.as_tensor(v)).all() for v in made.step().values())
    action, _, _ = made.policy.act(torch.eye(81), None, generator(0, "a"))
    assert action.shape == (81,) and action.dtype == torch.int64 and 0 <= int(action.min()) <= int(action.max()) < 4
    state, first = deepcopy(made.state_dict()), made.step()
    again, _, _ = learner(slug)
    again.load_state_dict(state)
    assert first == again.step()


def test_values_are_those_of_the_grid():
    """Two steps from the goal: γ, one step: 1."""
    import numpy as np

    from policyopt.problems.control.four_rooms import GOAL, MOVES, SIZE, moved, observe

    cells = np.stack(np.meshgrid(range(6, SIZE), range(6, SIZE), indexing="ij"), -1).reshape(-1, 2).repeat(4, 0)
    action = np.tile(np.arange(4), len(cells) // 4)
    reached = moved(cells, action)
    inside = (reached >= 5).all(1) & (cells != GOAL).any(1)
    done = (reached == GOAL).all(1)

    class Room(Logged):
        def transitions(self):
            data = super().transitions()[: inside.sum()].clone()
            return data.replace(
                observation=torch.from_numpy(observe(cells[inside])),
                action=torch.from_numpy(action[inside]),
                reward=torch.from_numpy(done[inside]).float(),
                next_observation=torch.from_numpy(observe(reached[inside])),
                terminated=torch.from_numpy(done[inside]),
                episode=None,
            )

    method = small(dqn.method())
    made = replace(method, rounds=(Round(updates=(replace(next(method.updates()), polyak=0.1, gamma=0.9),)),)).learner(
        Room(), seed=0
    )
    for _ in range(600):
        made.step()
    assert len(MOVES) == 4
    with torch.no_grad():
        near, two = made.agent["critic"](
            torch.from_numpy(observe(np.array([[SIZE - 1, SIZE - 2], [SIZE - 2, SIZE - 2]])))
        )
    assert float(near[1]) == pytest.approx(1.0, abs=0.05)
    assert float(two.max()) == pytest.approx(0.9, abs=0.05) and int(two.argmax()) in (1, 2)


def test_bad_input():
    with pytest.raises(ValueError, match="needs a control problem with discrete actions"):
        registry.method("dqn").learner(Checker(), seed=0)
    with pytest.raises(ValueError, match="needs a control problem with continuous actions"):
        registry.method("td3-bc").learner(Logged(), seed=0)
    with pytest.raises(ValueError, match="positive sizes"):
        Choices(width=0)
