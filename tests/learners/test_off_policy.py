from copy import deepcopy
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

from policyopt.learners.acting import network
from policyopt.learners.off_policy import (
    LogTemperature,
    OffPolicy,
    Round,
    SoftCritic,
    SoftPolicy,
    Temperature,
    Update,
    polyak,
    regression,
    soft_policy_loss,
    soft_target,
    temperature_loss,
)
from policyopt.learners.update import NonFinite
from policyopt.models.q_functions import QFunctions
from policyopt.models.soft_actor import TanhGaussian
from policyopt.problems.control.point_mass import PointMass
from policyopt.problems.control.two_gap import TwoGap
from policyopt.rollouts.replay import Interaction
from policyopt.types import Loss, generator

SMALL = OffPolicy(
    rounds=(
        Round(
            updates=(
                SoftCritic(model=QFunctions(width=8)),
                SoftPolicy(model=TanhGaussian(width=8)),
                Temperature(),
            ),
            repeat=2,
        ),
    ),
    collector=Interaction(environments=2, steps=2, warm_up=8),
    batch=16,
)


def test_soft_target_by_hand():
    values, no, yes = torch.tensor([[1.2], [0.8]]), torch.tensor([False]), torch.tensor([True])
    reward, logp = torch.tensor([0.5]), torch.tensor([-1.5])
    assert float(soft_target(reward, no, values, logp, 0.1, 0.99)) == pytest.approx(1.4405)
    assert float(soft_target(reward, yes, values, logp, 0.1, 0.99)) == 0.5


def test_the_temperature_takes_what_the_policy_has_drawn_and_draws_where_it_has_not():
    learner = SMALL.learner(TwoGap(), seed=0)
    while not len(learner.memory):
        learner.step()
    batch, temperature = learner.memory.sample(16, generator(0, "batch")), learner.agent["temperature"]
    update = Temperature(target_entropy=0.0)  # with α = 1 the gradient is −mean log π
    SoftPolicy().loss(learner.agent, batch, generator(0, "policy"))
    drawn = temperature.drawn
    _, wanted = learner.agent["actor"].sample(batch.observation, generator(0, "policy"))
    assert torch.equal(drawn, wanted.detach())
    fresh = learner.agent["actor"].sample(batch.observation, generator(0, "temperature"))[1]
    for logp, over in ((drawn, False), (fresh, True)):
        if over:
            SoftPolicy().finish(learner.agent)
        with torch.no_grad():
            temperature.log.zero_()
        (gradient,) = torch.autograd.grad(
            update.loss(learner.agent, batch, generator(0, "temperature")).value, temperature.log
        )
        torch.testing.assert_close(gradient, -logp.mean().detach())


def test_a_network_of_another_kind_is_named():
    learner = SMALL.learner(TwoGap(), seed=0)
    assert network(learner.agent, "temperature", LogTemperature) is learner.agent["temperature"]
    with pytest.raises(TypeError, match="'critic' has to be a LogTemperature here, and is a QEnsemble"):
        network(learner.agent, "critic", LogTemperature)


def test_regression_sums_heads_and_averages_rows():
    values = torch.tensor([[0.5, 0.5], [2.5, 4.5]])
    assert float(regression(values, torch.tensor([[1.0, 1.0], [2.0, 2.0]]))) == 0.5 * (0.25 + (0.25 + 6.25) / 2)
    assert float(regression(values, torch.tensor([0.5, 0.5]))) == 0.5 * (4.0 + 16.0) / 2


def test_policy_loss_takes_the_least_value():
    loss = soft_policy_loss(torch.tensor([[1.0, 5.0], [3.0, 2.0]]), torch.tensor([-1.0, 1.0]), torch.tensor(0.5))
    assert float(loss) == pytest.approx((-0.5 - 1.0 + 0.5 - 2.0) / 2)


@pytest.mark.parametrize(("logp", "direction"), [(-3.0, 1.0), (-1.0, -1.0)])
def test_temperature_falls_while_entropy_is_above_its_target(logp, direction):
    log_temperature = torch.tensor(0.3, requires_grad=True)
    temperature_loss(log_temperature, torch.full((4,), logp), 2.0).backward()
    assert float(log_temperature.grad) == direction  # gradient descent moves against it


def test_polyak_moves_by_its_rate():
    target, source = nn.Linear(1, 1), nn.Linear(1, 1)
    before = target.weight.clone()
    polyak(target, source, 0.25)
    assert target.weight.item() == pytest.approx(0.75 * before.item() + 0.25 * source.weight.item())


def test_each_update_moves_its_own_network_alone():
    learner = SMALL.learner(TwoGap(), seed=0)
    learner.step(), learner.step()
    batch = learner.memory.sample(16, generator(0, "b"))
    for update in SMALL.updates():
        before = {k: v.clone() for k, v in learner.agent.state_dict().items()}
        learner._update(update, batch, generator(0, "u"))
        update.finish(learner.agent)
        moved = {k.split(".")[0] for k, v in learner.agent.state_dict().items() if not torch.equal(v, before[k])}
        assert moved == {"critic": {"critic", "target"}}.get(update.trains, {update.trains})
        assert all(p.grad is None for p in learner.agent.parameters())


def test_the_target_network_begins_as_the_critic_and_follows():
    learner = SMALL.learner(TwoGap(), seed=0)
    for one, two in zip(learner.agent["critic"].parameters(), learner.agent["target"].parameters(), strict=True):
        assert torch.equal(one, two)
    for _ in range(4):
        learner.step()
    critic, target = (torch.cat([p.flatten() for p in learner.agent[n].parameters()]) for n in ("critic", "target"))
    assert 0.0 < (critic - target).abs().max() < 1e-2


def test_steps_count_and_nothing_is_learned_in_the_warm_up():
    learner = SMALL.learner(TwoGap(), seed=0)
    before = {k: v.clone() for k, v in learner.agent.state_dict().items()}
    metrics = [learner.step() for _ in range(3)]
    assert ["loss/value" in m for m in metrics] == [False, False, True]
    assert all(torch.equal(v, before[k]) for k, v in learner.agent.state_dict().items()) is False
    assert (len(learner.memory), learner.clock.spent["env_steps"]) == (12, 12.0)
    assert {"loss/policy", "policy/entropy", "policy/temperature", "value/mean", "reward/mean"} <= metrics[2].keys()


@pytest.mark.parametrize("steps", [1, 4])
def test_a_resumed_learner_goes_on_bit_by_bit(steps):
    method, problem = SMALL, TwoGap()
    first = method.learner(problem, seed=3)
    for _ in range(steps):
        first.step()
    state = deepcopy(first.state_dict())
    second = method.learner(problem, seed=3)
    second.load_state_dict(state)
    for _ in range(3):
        one, two = first.step(), second.step()
        assert {k: float(v) for k, v in one.items()} == {k: float(v) for k, v in two.items()}
    for key, value in first.agent.state_dict().items():
        assert torch.equal(value, second.agent.state_dict()[key])
    assert torch.equal(*(each.memory.sample(9, generator(0, "b")).observation for each in (first, second)))


@dataclass(frozen=True, kw_only=True)
class Broken(Update):
    trains: ClassVar[str] = "broken"

    def modules(self, problem, seed):
        return {"broken": LogTemperature(1.0)}

    def loss(self, agent, batch, rng):
        return Loss(agent["broken"]() * float("nan"))


def test_a_loss_that_is_not_finite_stops_before_the_weights():
    method = replace(SMALL, rounds=(Round(updates=(Broken(),)),), collector=None, acting=Nobody())
    learner = method.learner(TwoGap(demonstrated=2), seed=0)
    with pytest.raises(NonFinite):
        learner.step()
    assert learner.agent["broken"]().item() == 1.0


@dataclass(frozen=True, kw_only=True)
class Nobody(type(SMALL.acting)):
    def policy(self, agent):
        return None


def test_without_a_collector_the_data_of_the_problem_are_the_memory():
    method = replace(SMALL, collector=None)
    problem = TwoGap(demonstrated=4)
    learner = method.learner(problem, seed=0)
    metrics = learner.step()
    assert len(learner.memory) == len(problem.transitions())
    assert "cost/env_steps" not in metrics and "loss/value" in metrics
    assert learner.clock.spent == {"updates": 1}


def test_acting_is_a_sample_or_the_mode_and_warm_up_fills_the_box():
    learner = SMALL.learner(TwoGap(), seed=0)
    observation = torch.zeros(4000, 2)
    greedy, _, _ = learner.policy.act(observation, None, generator(0, "a"), greedy=True)
    assert torch.equal(greedy, learner.agent["actor"].mode(observation))
    assert learner.policy.act(observation, None, generator(0, "a"))[0].std() > 0.1
    uniform, columns, _ = learner.policy.warm_up(observation, None, generator(0, "a"))
    assert columns == {}
    assert uniform.min() < -0.99 and uniform.max() > 0.99
    assert uniform.var().item() == pytest.approx(1.0 / 3.0, rel=0.05)


def test_bad_settings():
    with pytest.raises(ValueError, match="2 updates train the network 'critic'"):
        OffPolicy(rounds=(Round(updates=(SoftCritic(), SoftCritic())),))
    with pytest.raises(ValueError, match="batch must be a positive"):
        OffPolicy(batch=0)
    with pytest.raises(ValueError, match="at least one update"):
        Round(updates=())
    with pytest.raises(ValueError, match="gamma and polyak are shares"):
        SoftCritic(gamma=1.5)
    with pytest.raises(ValueError, match="temperature must be positive"):
        Temperature(initial=0.0)
    for problem in (PointMass(), SimpleNamespace(name="words")):
        with pytest.raises(ValueError, match="needs a control problem with continuous actions"):
            SMALL.learner(problem, seed=0)
    with pytest.raises(ValueError, match="has no use for a Linear"):
        SMALL.learner(TwoGap(), nn.Linear(1, 1), seed=0)
