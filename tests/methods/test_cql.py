import math
from dataclasses import replace

import pytest
import torch

from policyopt.learners.off_policy import Round, SoftCritic
from policyopt.learners.update import Adam
from policyopt.methods import cql
from policyopt.problems.control.checker import Checker
from policyopt.types import generator


def small(method):
    updates = tuple(replace(u, model=replace(u.model, width=8)) if hasattr(u, "model") else u for u in method.updates())
    return replace(method, rounds=(Round(updates=updates),), batch=16).learner(Checker(logged=300), seed=0)


def test_the_gap_by_hand():
    sampled, logp = torch.tensor([[[0.0, math.log(3.0)]]]), torch.tensor([[math.log(0.5), math.log(0.25)]])
    assert float(cql.conservative_gap(sampled, logp, torch.tensor([[1.0]]))) == pytest.approx(math.log(2 + 12) - 1.0)
    equal = torch.full((2, 5, 30), 4.0)
    zero = cql.conservative_gap(equal, torch.full((5, 30), math.log(30.0)), torch.full((2, 5), 4.0))
    assert zero.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_importance_weights_estimate_the_integral():
    """Where Q doesn't depend on the action, log Z is Q + log (2^A · 30) for any proposals that fill the box."""
    learner = small(cql.method())
    last = learner.agent["actor"].layers[-1]
    with torch.no_grad():  # tanh of a standard Gaussian: broad enough for the mean of 1 / density to be seen
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 0.0, 0.458, 0.458]))
    batch = learner.memory.sample(64, generator(0, "b"))
    actions, logp = cql.proposals(learner.agent, batch, 400, generator(0, "p"))
    assert actions.shape == (64, 1200, 2) and actions.abs().max() <= 1.0
    volume = (-logp).exp().view(64, 3, 400).mean((0, 2))
    assert volume[0] == pytest.approx(4.0)
    assert volume[1:].tolist() == pytest.approx([4.0, 4.0], rel=0.15)


def test_values_are_the_critic_s():
    learner = small(cql.method())
    batch, critic = learner.memory.sample(16, generator(0, "b")), learner.agent["critic"]
    update = next(u for u in learner.method.updates() if u.trains == "critic")
    values, gap = update.values(learner.agent, batch, generator(0, "v"))
    actions, logp = cql.proposals(learner.agent, batch, 10, generator(0, "v"))
    each = torch.stack([critic(batch.observation, actions[:, i]) for i in range(30)], -1)
    data = critic(batch.observation, batch.action)
    assert torch.allclose(values, data, atol=1e-5)
    assert torch.allclose(gap, cql.conservative_gap(each, logp, data), atol=1e-5)


def test_without_weight_it_is_sac():
    learner = small(cql.soft())
    batch = learner.memory.sample(16, generator(0, "b"))
    critics = cql.ConservativeCritic(weight=0.0, soft=True), SoftCritic()
    losses = [c.loss(learner.agent, batch, generator(0, "l")).value for c in critics]
    assert torch.allclose(*losses)
    gradients = [torch.autograd.grad(loss, list(learner.agent["critic"].parameters())) for loss in losses]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_the_factor_rises_above_its_threshold_and_falls_below():
    for threshold, direction in ((-100.0, 1.0), (100.0, -1.0)):
        learner = small(cql.lagrange())
        batch = learner.memory.sample(16, generator(0, "b"))
        replace(cql.Conservatism(), threshold=threshold).loss(learner.agent, batch, generator(0, "l")).value.backward()
        assert -direction * float(learner.agent["conservatism"].log.grad) > 0


def test_it_pushes_unseen_actions_down():
    fast = cql.ConservativeCritic(optimizer=Adam(learning_rate=1e-2, gradient_clip=None))
    learner = small(cql.conservative(fast))
    batch = learner.memory.sample(256, generator(0, "b"))
    unseen = 2.0 * torch.rand(256, 20, 2, generator=generator(0, "u")) - 1.0

    def gap():
        critic = learner.agent["critic"]
        with torch.no_grad():
            values = critic.many(batch.observation, torch.cat((batch.action[:, None], unseen), 1))
        return float((values[..., 1:].mean(-1) - values[..., 0]).mean())

    before = gap()
    for _ in range(30):
        learner.step()
    assert gap() < before - 0.02
    assert {"value/conservatism", "value/gap"} <= small(cql.lagrange()).step().keys()


def test_bad_settings():
    with pytest.raises(ValueError, match="at least one sample"):
        cql.ConservativeCritic(samples=0)
