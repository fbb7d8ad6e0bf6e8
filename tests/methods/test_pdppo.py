import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.distributions import Categorical

from policyopt import registry
from policyopt.credit.returns import discounted_returns
from policyopt.credit.scaling import SingleSteps
from policyopt.methods import pdppo
from policyopt.methods.pdppo import EachChoice, MachineMLP, MonteCarloAdvantage, PostDecision, PostDecisionCritic, Reuse
from policyopt.models.control import MLP
from policyopt.problems.control.point_mass import PointMass
from policyopt.problems.decision.lot_sizing import REGIMES, LotSizing
from policyopt.problems.decision.slippery_lake import SlipperyLake
from policyopt.types import Clock, Rollouts

SMALL = LotSizing(items=3, machines=2, horizon=6)


def small(method, **changes):
    collector = replace(method.collector, environments=3, steps=6)
    return replace(method, policy=MachineMLP(hidden=(8,)), collector=collector, epochs=2, **changes)


def rollouts(rewards, value, ended):
    n, t = ended.shape
    return Rollouts(
        actions=torch.zeros(n, t),
        mask=torch.ones(n, t, dtype=torch.bool),
        rewards=rewards,
        value=value,
        discount=torch.full((n, t), 0.9),
        terminated=torch.zeros(n, t, dtype=torch.bool),
        truncated=ended,
        batch_size=[n],
    )


RANDOM, KNOWN = torch.tensor([[-2.0, -2.0, -2.0]]), torch.tensor([[-1.0, 0.0, -2.0]])
PAIR = torch.stack([RANDOM, KNOWN], -1)
VALUES = torch.tensor([[[-5.0, -2.0], [-4.0, -3.0], [-1.0, -1.5]]])
WHOLE = torch.tensor([[False, False, True]])


def credited(combine="max", rewards=PAIR, value=VALUES, ended=WHOLE):
    return MonteCarloAdvantage(combine=combine)(rollouts(rewards, value, ended))


def test_returns_and_advantages_by_hand():
    made = credited()
    torch.testing.assert_close(made.returns[0, :, 0], torch.tensor([-5.42, -3.8, -2.0]))
    torch.testing.assert_close(made.returns[0, :, 1], torch.tensor([-2.62, -1.8, -2.0]))
    torch.testing.assert_close(made.advantage, torch.tensor([[-0.42, 1.2, -0.5]]))
    torch.testing.assert_close(credited("state").advantage, torch.tensor([[-0.42, 0.2, -1.0]]))
    torch.testing.assert_close(credited("sum").advantage, torch.tensor([[-1.04, 1.4, -1.5]]))
    assert (made.advantage >= credited("state").advantage).all()


def test_the_two_returns_add_up_to_that_of_the_whole_reward():
    rng = torch.Generator().manual_seed(0)
    rewards, value = torch.randn(2, 4, 9, 2, generator=rng)
    ended = torch.rand(4, 9, generator=rng) < 0.3
    ended[:, -1] = True
    made = MonteCarloAdvantage(combine="sum")(rollouts(rewards, value, ended))
    whole = discounted_returns(rewards.sum(-1), 0.9 * ~ended)
    torch.testing.assert_close(made.returns.sum(-1), whole)
    torch.testing.assert_close(made.advantage, whole - value.sum(-1))


def test_without_a_known_reward_and_its_critic_it_is_ppo():
    rewards = torch.stack([RANDOM + KNOWN, torch.zeros(1, 3)], -1)
    never = torch.stack([VALUES[..., 0], torch.full((1, 3), torch.inf)], -1)
    plain = credited(rewards=RANDOM + KNOWN, value=VALUES[..., 0])
    torch.testing.assert_close(credited(rewards=rewards, value=never).advantage, plain.advantage)
    assert plain.returns.shape == (1, 3)


def test_unfinished_episodes_do_not_count():
    ended = torch.tensor([[False, True, False]])
    made = credited(ended=ended)
    assert made.mask.tolist() == [[True, True, False]]
    torch.testing.assert_close(made.returns[0, 0], torch.tensor([-3.8, -1.0]))
    assert made.advantage[0, 2] == 0
    with pytest.raises(ValueError, match=r"no episode ended.*collector\.steps"):
        credited(ended=torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="one of max, sum, state"):
        MonteCarloAdvantage(combine="min")


def collect(collector=None, problem=SMALL):
    collector = collector or PostDecision(environments=3, steps=6, gamma=0.9)
    policy = MachineMLP(hidden=(8,)).build(problem, 0)
    return policy, collector(policy, problem, Clock(seed=1), collector.memory()).batches["rollouts"]


def test_collected_rewards_are_divided_and_post_states_are_the_simulators():
    policy, batch = collect()
    plain = pdppo.Vector(environments=3, steps=6, gamma=0.9)
    same = collect(plain)[1]
    torch.testing.assert_close(batch.rewards.sum(-1), same.rewards)
    post, known = SMALL.post_decision(batch.observations.numpy(), batch.actions.numpy())
    assert torch.equal(batch.post_observations, torch.from_numpy(post))
    assert torch.equal(batch.rewards[..., 1], torch.from_numpy(known)) and (batch.rewards[..., 1] < 0).any()
    assert batch.behaviour_logp.shape == (3, 6, 2) and policy.critic(0).objectives == 0
    with pytest.raises(ValueError, match=r"post_decision.*pdppo:ppo"):
        collect(problem=PointMass())


def rows():
    policy, batch = collect()
    live = PostDecisionCritic().build(policy, 0)
    batch = MonteCarloAdvantage()(live.annotate(batch, 4))
    return policy, live, batch, EachChoice()(SingleSteps()(batch))


def test_one_ratio_a_machine():
    policy, _, batch, split = rows()
    assert split.mask.shape == (18, 2)
    logp = policy.evaluate(split, ("logp", "entropy"))
    torch.testing.assert_close(logp.logp, split.behaviour_logp)  # before any update every ratio is one
    torch.testing.assert_close(logp.entropy, split.entropy)
    logits = policy(batch.observations).unflatten(-1, (2, 4))
    peer = Categorical(logits=logits)
    torch.testing.assert_close(logp.logp.view(3, 6, 2), peer.log_prob(batch.actions))
    joint = MLP(hidden=(8,)).build(SMALL, 0)  # the same weights, for methods with one ratio an action
    torch.testing.assert_close(joint.evaluate(batch).logp, peer.log_prob(batch.actions).sum(-1))


def test_the_first_gradient_is_the_mean_of_advantage_times_score():
    policy, _, batch, split = rows()
    objective = replace(pdppo.method().objective, regularizers=())
    objective(policy.evaluate(split), objective.prepare(split)).value.backward()
    got = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    score = Categorical(logits=policy(batch.observations).unflatten(-1, (2, 4))).log_prob(batch.actions)
    (-(batch.advantage[..., None] * score).mean()).backward()
    for mine, textbook in zip(got, policy.parameters(), strict=True):
        torch.testing.assert_close(mine, textbook.grad)


def test_the_critics_are_two_networks_at_two_states():
    policy, live, batch, split = rows()
    torch.testing.assert_close(batch.value[..., 0], live.model.state.value(batch.observations))
    torch.testing.assert_close(batch.value[..., 1], live.model.post.value(batch.post_observations))
    torch.testing.assert_close(live.model.state.value(batch.observations), policy.critic(0).value(batch.observations))
    assert not torch.equal(live.model.state.network[0].weight, live.model.post.network[0].weight)
    loss = float(live.update(split, Clock(), 1000)["loss/value"])
    expected = 0.5 * (batch.value - batch.returns).square().mean()
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_two_separate_optimizers_reach_the_same_weights():
    policy, batch = collect()
    policy.standardization.refresh()  # raw inventories saturate the units: gradients would be rounding errors
    settings = PostDecisionCritic(optimizer=pdppo.Adam(learning_rate=1e-3, gradient_clip=None))
    live = settings.build(policy, 0)
    batch = MonteCarloAdvantage()(live.annotate(batch, 1000))
    split = EachChoice()(SingleSteps()(batch))
    peers = [deepcopy(live.model.state), deepcopy(live.model.post)]
    optimizers = [torch.optim.Adam(peer.parameters(), lr=1e-3) for peer in peers]
    for _ in range(3):
        live.update(split, Clock(), 1000)
        states = (batch.observations, batch.post_observations)
        for i, (peer, optimizer) in enumerate(zip(peers, optimizers, strict=True)):
            optimizer.zero_grad()
            (peer.value(states[i]) - batch.returns[..., i]).square().mean().backward()
            optimizer.step()
    for mine, peer in zip((live.model.state, live.model.post), peers, strict=True):
        for a, b in zip(mine.parameters(), peer.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_shared_critic_fits_the_sum():
    policy, batch = collect()
    live = PostDecisionCritic(shared=True).build(policy, 0)
    assert live.model.state is live.model.post
    batch = MonteCarloAdvantage()(live.annotate(batch, 1000))
    split = EachChoice()(SingleSteps()(batch))
    loss = float(live.update(split, Clock(), 1000)["loss/value"])
    assert loss == pytest.approx(float(0.5 * (batch.value.sum(-1) - batch.returns.sum(-1)).square().mean()), rel=1e-5)
    assert live.annotate(batch, 1000).value.shape == (3, 6, 2)


def test_old_collections_are_reused_as_they_were():
    part, (_, _, batch, _) = Reuse(blocks=2), rows()
    memory, single = part.memory(), SingleSteps()(batch)
    blocks = [single.replace(advantage=torch.full_like(single.advantage, float(i))) for i in range(3)]
    sizes = [part(block, memory).advantage.unique().tolist() for block in blocks]
    assert sizes == [[0.0], [0.0, 1.0], [1.0, 2.0]]
    again = part.memory()
    again.load_state_dict(memory.state_dict())
    made, want = (part(blocks[0], each) for each in (again, memory))
    assert torch.equal(made.advantage, want.advantage) and torch.equal(made.observations, want.observations)


def test_free_set_ups_make_it_ppo_step_by_step(monkeypatch):
    free = REGIMES["mild"]._replace(setup_cost={0: 1.0})
    monkeypatch.setitem(REGIMES, "mild", free)
    problem = replace(SMALL, regime="mild")
    base = small(pdppo.method())
    first = replace(base, credit=(MonteCarloAdvantage(combine="state"), *base.credit[1:]))
    learners = [method.learner(problem, seed=4) for method in (first, small(pdppo.ppo()))]
    for _ in range(3):
        one, two = (learner.step() for learner in learners)
        assert float(one["loss/policy"]) == pytest.approx(float(two["loss/policy"]), rel=1e-5)
    for a, b in zip(*(learner.policy.parameters() for learner in learners), strict=True):
        torch.testing.assert_close(a, b)


def test_single_choices_stay_as_they_are():
    method = small(pdppo.method())
    learner = replace(method, collector=replace(method.collector, steps=40)).learner(SlipperyLake(), seed=0)
    assert all(math.isfinite(float(value)) for value in learner.step().values())


@pytest.mark.parametrize("name", ["pdppo", *(f"pdppo:{variant}" for variant in pdppo.VARIANTS)])
def test_every_variant_resumes_bit_identically(name):
    method = small(registry.method(name))
    straight = method.learner(SMALL, seed=1)
    for _ in range(2):
        straight.step()
    resumed = method.learner(SMALL, seed=1)
    resumed.load_state_dict(deepcopy(straight.state_dict()))
    one, two = straight.step(), resumed.step()
    assert {k: float(v) for k, v in one.items()} == {k: float(v) for k, v in two.items()}
    for a, b in zip(straight.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(a, b)
