import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from policyopt.models.mixture import MixtureMLP, TanhMixture, mixture_logp
from policyopt.models.soft_actor import TanhGaussian
from policyopt.problems.control.multi_goal import MultiGoal
from policyopt.problems.control.point_mass import PointMass
from policyopt.types import Rollouts, generator


def test_density_by_hand():
    logits = torch.tensor([0.3, 0.7]).log() + 5.0  # logits are known up to a constant
    mean, log_deviation = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1), 0.5).log()
    logp = mixture_logp(logits, mean, log_deviation, torch.tensor([0.2]))
    assert logp.item() == pytest.approx(-1.779480, abs=1e-5) and logp.exp().item() == pytest.approx(0.168726, abs=1e-6)


def test_far_from_every_expert_the_density_stays_finite():
    logp = mixture_logp(torch.zeros(2), torch.zeros(2, 1), torch.full((2, 1), -3.0), torch.tensor([50.0]))
    assert np.isfinite(logp.item()) and logp.item() < -1e4


def mixture(policy, observations):
    logits, mean, log_deviation = policy.split(policy(observations))
    return MixtureSameFamily(Categorical(logits=logits), Independent(Normal(mean, log_deviation.exp()), 1))


def trained(experts=3):
    policy = MixtureMLP(hidden=(8,), experts=experts, standardize=True).build(MultiGoal(), 0)
    with torch.no_grad():
        policy.network[-1].weight.mul_(60.0)
        policy.gate.weight.normal_(generator=torch.Generator().manual_seed(0))
    return policy


def test_the_policy_agrees_with_torch():
    policy, observations, actions = trained(), torch.randn(4, 5, 2), torch.randn(4, 5, 2)
    batch = Rollouts(
        actions=actions, mask=torch.ones(4, 5, dtype=torch.bool), observations=observations, batch_size=[4]
    )
    wanted = mixture(policy, observations).log_prob(actions)
    torch.testing.assert_close(policy.evaluate(batch).logp, wanted)
    torch.testing.assert_close(policy.evaluate(batch, ("logp", "entropy")).entropy, -wanted)


def test_samples_are_of_the_mixture():
    policy, seen = trained(), torch.tensor([[0.4, -1.0]]).expand(40_000, 2)
    actions, recorded, _ = policy.act(seen, None, torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = mixture(policy, seen[:1])
        torch.testing.assert_close(actions.mean(0), wanted.mean[0], atol=0.02, rtol=0)
        torch.testing.assert_close(actions.var(0), wanted.variance[0], atol=0, rtol=0.05)
        torch.testing.assert_close(recorded["behaviour_logp"], wanted.log_prob(actions))
    logits, mean, _ = policy.split(policy(seen[:1]))
    greedy, _, _ = policy.act(seen[:1], None, torch.Generator(), greedy=True)
    assert torch.equal(greedy[0], mean[0, logits[0].argmax()])


def test_the_actor_samples_experts_as_often_as_they_weigh():
    actor, seen = TanhMixture(width=8, experts=3).build(2, 2, 0), torch.tensor([[0.4, -1.0]]).expand(30_000, 2)
    with torch.no_grad():
        actor.gate[-1].bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
        every, density = actor.propose(seen, generator(0, "s"))
        action, logp = actor.sample(seen, generator(0, "s"))
        weights = actor.gate(seen[:1]).softmax(-1)[0]
    chosen = (action[:, None] == every).all(-1)
    assert (chosen.sum(1) == 1).all() and torch.equal(density[chosen], logp)
    torch.testing.assert_close(chosen.float().mean(0), weights, atol=0.015, rtol=0)
    assert torch.equal(actor.mode(seen[:1])[0], actor(seen[:1])[0][0, 1].tanh())


def test_one_expert_is_the_soft_actor():
    seen = torch.randn(20, 3)
    one, plain = TanhMixture(width=8, experts=1).build(3, 2, 4), TanhGaussian(width=8).build(3, 2, 4)
    pairs = zip(one.sample(seen, generator(0, "s")), plain.sample(seen, generator(0, "s")), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(one.mode(seen), plain.mode(seen))


def test_the_gate_is_linear_or_a_network():
    assert len(TanhMixture(experts=3).build(2, 2, 0).gate) == 1
    assert [x.shape for x in TanhMixture(experts=3, gate=(8,)).build(2, 2, 0).gate.parameters()][-1] == (3,)


def test_bad_input():
    with pytest.raises(ValueError, match="a mixture needs positive numbers"):
        TanhMixture(experts=0)
    with pytest.raises(ValueError, match="needs a control problem with continuous actions and one reward"):
        MixtureMLP().build(PointMass(), 0)
