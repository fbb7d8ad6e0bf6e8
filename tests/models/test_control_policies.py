from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, Normal

from policyopt.learners.update import Linear
from policyopt.methods import ppo
from policyopt.models.categorical import CategoricalPolicy, MultiCategoricalPolicy
from policyopt.models.control import MLP
from policyopt.models.gaussian import GaussianPolicy
from policyopt.models.mlp import mlp
from policyopt.problems.control.environments import GymnasiumProblem
from policyopt.problems.control.point_mass import PointMass
from policyopt.problems.decision.lot_sizing import LotSizing
from policyopt.training.loop import run
from policyopt.types import Budget, Rollouts, generator


def batch_of(observations, actions):
    return Rollouts(
        actions=actions,
        mask=torch.ones(observations.shape[:2], dtype=torch.bool),
        observations=observations,
        next_observations=observations + 1,
        batch_size=[len(observations)],
    )


def test_gaussian_agrees_with_torch():
    policy = GaussianPolicy(3, 2, (8,), generator(0, "test"))
    policy.log_deviation.data = torch.tensor([0.3, -0.7])
    observations, actions = torch.randn(4, 5, 3), torch.randn(4, 5, 2)
    outputs = policy.evaluate(batch_of(observations, actions), ("logp", "entropy"))
    peer = Independent(Normal(policy(observations), policy.log_deviation.exp()), 1)
    torch.testing.assert_close(outputs.logp, peer.log_prob(actions))
    torch.testing.assert_close(outputs.entropy, peer.entropy())
    greedy, *_ = policy.act(observations[0], None, torch.Generator(), greedy=True)
    torch.testing.assert_close(greedy, policy(observations[0]))
    drawn, recorded, _ = policy.act(observations[0, :1].expand(20_000, 3), None, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.std(0), policy.log_deviation.exp().detach(), rtol=0.03, atol=0)
    assert recorded["behaviour_logp"].shape == (20_000,)


def test_categorical_agrees_with_torch():
    policy = CategoricalPolicy(3, 4, (8,), generator(1, "test"))
    policy.network[-1].weight.data *= 100
    observations, actions = torch.randn(4, 5, 3), torch.randint(4, (4, 5))
    outputs = policy.evaluate(batch_of(observations, actions), ("logp", "entropy"))
    peer = Categorical(logits=policy(observations))
    torch.testing.assert_close(outputs.logp, peer.log_prob(actions))
    torch.testing.assert_close(outputs.entropy, peer.entropy())
    drawn, *_ = policy.act(observations[0, :1].expand(40_000, 3), None, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / 40_000
    torch.testing.assert_close(shares, peer.probs[0, 0].detach(), atol=0.01, rtol=0)
    assert policy.act(observations[0], None, torch.Generator(), greedy=True)[0].equal(peer.probs[0].argmax(-1))


@pytest.mark.parametrize("choices", [(3, 3), (2, 4, 1)])
def test_several_choices_agree_with_torch(choices):
    policy = MultiCategoricalPolicy(3, choices, (8,), generator(1, "test"))
    policy.network[-1].weight.data *= 100
    observations = torch.randn(4, 5, 3)
    actions = torch.stack([torch.randint(count, (4, 5)) for count in choices], -1)
    outputs = policy.evaluate(batch_of(observations, actions), ("logp", "entropy"))
    peers = [Categorical(logits=logits) for logits in policy(observations).split(choices, -1)]
    torch.testing.assert_close(outputs.logp, sum(peer.log_prob(actions[..., m]) for m, peer in enumerate(peers)))
    torch.testing.assert_close(outputs.entropy, sum(peer.entropy() for peer in peers))
    (outputs.logp.sum() + outputs.entropy.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters())
    drawn, recorded, _ = policy.act(observations[0, :1].expand(40_000, 3), None, torch.Generator().manual_seed(0))
    assert recorded["behaviour_logp"].shape == (40_000,)
    for m, (count, peer) in enumerate(zip(choices, peers, strict=True)):
        shares = torch.bincount(drawn[:, m], minlength=count) / 40_000
        torch.testing.assert_close(shares, peer.probs[0, 0].detach(), atol=0.01, rtol=0)
    best = policy.act(observations[0], None, torch.Generator(), greedy=True)[0]
    assert best.equal(torch.stack([peer.probs[0].argmax(-1) for peer in peers], -1))


def test_weights_are_orthogonal_and_drawn_from_the_seed():
    first, again, other = (mlp((6, 16, 16, 2), 0.01, generator(s, "x")) for s in (0, 0, 1))
    weight = first[2].weight
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(16), atol=1e-5, rtol=0)
    assert float(first[-1].weight.detach().norm()) == pytest.approx(0.01 * 2**0.5, rel=1e-4)
    assert torch.equal(weight, again[2].weight)
    assert not torch.equal(weight, other[2].weight)
    assert all((layer.bias == 0).all() for layer in first if hasattr(layer, "bias"))


def test_critic_has_a_head_for_each_objective_and_values_what_follows():
    policy = MLP(hidden=(8,), standardize=True).build(PointMass(), 0)
    policy.standardization.observe(torch.randn(50, 4) * 3 + 1)
    policy.standardization.refresh()
    critic, batch = policy.critic(1), batch_of(torch.randn(3, 5, 4), torch.zeros(3, 5, 2))
    value, following = critic.values(batch, limit=5)
    assert value.shape == (3, 5, 3)
    torch.testing.assert_close(value, critic.evaluate(batch).value)
    torch.testing.assert_close(following, critic.value(batch.observations + 1))
    assert critic.standardization is policy.standardization  # it sees what the policy sees
    scalar = MLP(hidden=(8,)).build(GymnasiumProblem(id="CartPole-v1"), 0).critic(1)
    assert scalar.evaluate(batch).value.shape == (3, 5)


def test_micro_batches_cover_all_rows_and_copies_are_frozen():
    policy = MLP(hidden=(8,)).build(PointMass(), 0)
    pieces = policy.micro_batches(batch_of(torch.zeros(7, 5, 4), torch.zeros(7, 5, 2)), 11)
    assert [list(range(7)[piece]) for piece in pieces] == [[0, 1], [2, 3], [4, 5], [6]]
    copy = policy.frozen_copy()
    policy.log_deviation.data += 1
    assert (copy.log_deviation == 0).all()
    assert not any(p.requires_grad for p in copy.parameters())


def small(**changes):
    method = ppo.control()
    collector = replace(method.collector, environments=4, steps=32)
    return replace(method, policy=MLP(hidden=(16,)), collector=collector, minibatches=4, epochs=2, **changes)


@pytest.mark.parametrize(
    "problem", [GymnasiumProblem(id="CartPole-v1"), GymnasiumProblem(id="Pendulum-v1"), LotSizing()]
)
def test_ppo_resumes_bit_identically(problem):
    budget = Budget(env_steps=1000)
    straight = small().learner(problem, seed=1, budget=budget)
    for _ in range(2):
        straight.step()
    resumed = small().learner(problem, seed=1, budget=budget)
    resumed.load_state_dict(deepcopy(straight.state_dict()))
    one, two = straight.step(), resumed.step()
    assert {k: float(v) for k, v in one.items()} == {k: float(v) for k, v in two.items()}
    for a, b in zip(straight.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_ppo_learns_cartpole_a_little():
    method = replace(
        small(),
        optimizer=replace(ppo.control().optimizer, learning_rate=3e-3, schedule=Linear(final=0.5)),
        collector=replace(ppo.control().collector, environments=8, steps=64),
        epochs=2,
    )
    result = run(method, GymnasiumProblem(id="CartPole-v1"), budget=Budget(env_steps=5000), seed=0)
    returns = result.curve("episode/return")[1]
    assert np.mean(returns[-3:]) > 1.7 * np.mean(returns[:2])


def test_a_problem_without_vector_rewards_needs_scalar_credit():
    with pytest.raises(ValueError, match="no control problem"):
        ppo.control().learner(object(), seed=0)


def test_distributions_are_what_is_sampled():
    observations = torch.randn(4, 5, 3)
    gaussian = GaussianPolicy(3, 2, (8,), generator(0, "test"))
    categorical = CategoricalPolicy(3, 4, (8,), generator(1, "test"))
    several = MultiCategoricalPolicy(3, (2, 4), (8,), generator(2, "test"))
    for policy, actions in (
        (gaussian, torch.randn(4, 5, 2)),
        (categorical, torch.randint(4, (4, 5))),
        (several, torch.randint(2, (4, 5, 2))),
    ):
        outputs = policy.evaluate(batch_of(observations, actions), ("logp", "entropy"))
        distribution = policy.distribution(observations)
        torch.testing.assert_close(outputs.logp, distribution.log_prob(actions))
        torch.testing.assert_close(outputs.entropy, distribution.entropy())
