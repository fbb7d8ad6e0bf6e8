from dataclasses import replace

import pytest
import torch

from policyopt.learners.off_policy import Round
from policyopt.methods import iql
from policyopt.problems.control.checker import Checker
from policyopt.types import generator


def small(method):
    updates = tuple(replace(u, model=replace(u.model, width=8)) for u in method.updates())
    return replace(method, rounds=(Round(updates=updates),), batch=16).learner(Checker(logged=300), seed=0)


def test_expectile_by_hand_and_its_limits():
    difference = torch.tensor([1.0, -2.0])
    assert float(iql.expectile_loss(difference, 0.7)) == pytest.approx((0.7 * 1.0 + 0.3 * 4.0) / 2)
    assert float(iql.expectile_loss(difference, 0.5)) == pytest.approx(0.5 * float(difference.square().mean()))
    samples = torch.tensor([0.0, 1.0, 5.0])
    for expectile, wanted in ((0.5, 2.0), (0.999, 5.0), (0.001, 0.0)):
        grid = torch.linspace(-1.0, 6.0, 7001)
        best = grid[torch.stack([iql.expectile_loss(samples - v, expectile) for v in grid]).argmin()]
        assert float(best) == pytest.approx(wanted, abs=0.02)


def test_weights_are_exponential_capped_and_without_gradient():
    advantage = torch.tensor([0.0, 1.0, 9.0], requires_grad=True)
    weights = iql.advantage_weights(advantage, 3.0, 100.0)
    assert weights.tolist() == [1.0, pytest.approx(20.0855, rel=1e-4), 100.0]
    assert not weights.requires_grad


def test_losses_are_the_textbook_s():
    learner = small(iql.method())
    value, actor, critic = learner.method.updates()
    batch, agent = learner.memory.sample(32, generator(0, "b")), learner.agent
    seen, action, rng = batch.observation, batch.action, generator(0, "l")
    q, v = agent["target"](seen, action).amin(0).detach(), agent["value"](seen)
    assert torch.allclose(value.loss(agent, batch, rng).value, iql.expectile_loss(q - v, 0.7))
    target = batch.reward + 0.99 * (1.0 - batch.terminated.float()) * agent["value"](batch.next_observation)
    q1, q2 = agent["critic"](seen, action)
    wanted = 0.5 * ((q1 - target) ** 2).mean() + 0.5 * ((q2 - target) ** 2).mean()
    assert torch.allclose(critic.loss(agent, batch, rng).value, wanted)
    logp = torch.distributions.Normal(agent["actor"](seen), 1.0).log_prob(action).sum(-1)
    assert torch.allclose(actor.loss(agent, batch, rng).value, -((3.0 * (q - v)).exp().clamp(max=100.0) * logp).mean())


def test_with_expectile_one_half_values_regress_like_sarsa():
    """V is then the mean of the data's values: the gradient is that of ¼ (Q − V)²·2."""
    learner = small(iql.method())
    batch, agent = learner.memory.sample(32, generator(0, "b")), learner.agent
    half = replace(next(iter(learner.method.updates())), expectile=0.5)
    mean = 0.5 * (iql.data_values(agent, batch) - agent["value"](batch.observation)).square().mean()
    parameters = list(agent["value"].parameters())
    wanted = torch.autograd.grad(mean, parameters)
    found = torch.autograd.grad(half.loss(agent, batch, generator(0, "l")).value, parameters)
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


def test_it_runs_and_knows_its_variant():
    learner = small(iql.method())
    assert {"loss/expectile", "loss/policy", "loss/value"} <= [learner.step() for _ in range(3)][-1].keys()
    ant = small(iql.antmaze())
    assert torch.allclose(ant.memory.columns["reward"], Checker(logged=300).transitions().reward - 1.0)
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        iql.ExpectileValue(expectile=1.0)
