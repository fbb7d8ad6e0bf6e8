from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from policyopt.learners.acting import Acting
from policyopt.learners.off_policy import regression, soft_policy_loss
from policyopt.methods import dsrl, flow_bc
from policyopt.models.diffusion import Flow
from policyopt.problems.control.two_gap import TwoGap
from policyopt.rollouts.replay import Interaction
from policyopt.training import loop
from policyopt.types import Budget, generator


class Identity(nn.Module):
    """The policy whose action is its noise."""

    def decode(self, observation, noise):
        return noise


class Deaf(nn.Module):
    """A policy that ignores its noise."""

    def decode(self, observation, noise):
        return 0.5 * observation


def small(method, **settings):
    """The method in a size for tests."""
    rounds = tuple(replace(one, repeat=2) for one in method.rounds)
    collector = Interaction(environments=2, warm_up=6)
    return replace(method, **{"rounds": rounds, "collector": collector, "batch": 16, **settings})


ACTIONS = small(dsrl.on_actions(width=8, layers=2))
NOISE = small(dsrl.on_noise(width=8, layers=2))
both = pytest.mark.parametrize("method", [ACTIONS, NOISE], ids=["na", "sac"])


def flow(seed=0):
    return Flow(width=8, layers=2, steps=3).build(2, 2, seed=seed)


def states(count=64):
    return 2.0 * torch.rand(count, 2, generator=generator(0, "states")) - 1.0


def test_distillation_by_hand_and_one_way():
    actions = torch.tensor([[1.0], [2.0]], requires_grad=True)
    noise = torch.tensor([[0.5], [2.5]], requires_grad=True)
    loss = regression(noise, actions.detach())
    assert loss.item() == 0.25
    loss.backward()
    assert noise.grad.flatten().tolist() == [-0.5, 0.5]


def test_distillation_reaches_neither_the_action_critic_nor_the_base():
    learner = ACTIONS.learner(TwoGap(), flow(), seed=0)
    for _ in range(4):
        learner.step()
    learner.agent["base"].requires_grad_(True)
    update = ACTIONS.rounds[1].updates[0]
    loss = update.loss(learner.agent, learner.memory.sample(16, generator(0, "b")), generator(0, "u"))
    loss.value.backward()
    assert any(name.startswith("base") for name, _ in learner.agent.named_parameters())
    reached = {name.split(".")[0] for name, p in learner.agent.named_parameters() if p.grad is not None}
    assert reached == {"noise_critic"}


def test_distillation_compares_like_with_like():
    """Head by head, at noise that is not clipped, given to the noise critic in units of the bound."""
    learner = ACTIONS.learner(TwoGap(), flow(), seed=0)
    for _ in range(4):
        learner.step()
    agent, batch = learner.agent, learner.memory.sample(500, generator(0, "b"))
    noise = torch.randn(500, 2, generator=generator(0, "u"))
    assert noise.abs().max() > 1.5
    action = agent["base"].base.decode(batch.observation, noise)
    difference = agent["noise_critic"](batch.observation, noise / 1.5) - agent["critic"](batch.observation, action)
    loss = ACTIONS.rounds[1].updates[0].loss(agent, batch, generator(0, "u")).value
    assert loss.item() == pytest.approx(
        0.5 * (difference[0].square().mean() + difference[1].square().mean()).item(), rel=1e-4
    )


def test_the_target_of_the_action_critic_is_under_the_steered_base():
    learner = ACTIONS.learner(TwoGap(), flow(), seed=0)
    for _ in range(4):
        learner.step()
    agent, batch = learner.agent, learner.memory.sample(32, generator(0, "b"))
    critic = ACTIONS.rounds[0].updates[1]
    with torch.no_grad():
        scaled, logp = agent["actor"].sample(batch.next_observation, generator(0, "u"))
        action = agent["base"].base.decode(batch.next_observation, 1.5 * scaled)
        values = agent["target"](batch.next_observation, action).min(0).values - agent["temperature"]() * logp
    expected = batch.reward + 0.99 * (1.0 - batch.terminated.float()) * values
    assert critic.target(agent, batch, generator(0, "u")).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_on_the_identity_steering_by_noise_is_soft_actor_critic():
    steered = replace(NOISE, acting=dsrl.Steering(bound=1.0, remembers_noise=True), collector=Interaction(warm_up=0))
    plain = replace(steered, acting=Acting())
    one, two = steered.learner(TwoGap(), Identity(), seed=5), plain.learner(TwoGap(), seed=5)
    for _ in range(6):
        first, second = one.step(), two.step()
        assert {k: float(v) for k, v in first.items()} == {k: float(v) for k, v in second.items()}
    for name, value in two.agent.state_dict().items():
        assert torch.equal(value, one.agent.state_dict()[name])
    for name, column in two.memory.columns.items():
        assert torch.equal(column[:6], one.memory.columns[name][:6])


@both
def test_the_base_stays_as_it_is(method):
    base = flow()
    before = {k: v.clone() for k, v in base.state_dict().items()}
    learner = method.learner(TwoGap(), base, seed=0)
    for _ in range(6):
        learner.step()
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    assert all(
        torch.equal(v, before[k.removeprefix("base.base.")])
        for k, v in learner.agent.state_dict().items()
        if "base" in k
    )


def test_without_a_bound_the_base_decodes_zero_noise():
    base = flow()
    scaled = 2.0 * torch.rand(64, 2, generator=generator(0, "w")) - 1.0
    assert torch.equal(dsrl.Steerable(base, 0.0)(states(), scaled), base.decode(states(), torch.zeros(64, 2)))


@pytest.mark.parametrize("bound", [0.5, 2.5])
@both
def test_noise_stays_within_its_bound(method, bound):
    learner = replace(method, acting=replace(method.acting, bound=bound)).learner(TwoGap(), Identity(), seed=0)
    noise, columns, _ = learner.policy.act(states(2000), None, generator(0, "a"))
    assert 0.9 * bound < noise.abs().max() <= bound
    if method is NOISE:
        assert torch.equal(bound * columns["action"], noise)
        noise, columns, _ = learner.policy.warm_up(states(2000), None, generator(0, "a"))
        assert noise.abs().max() == pytest.approx(bound) and columns["action"].abs().max() == 1.0
    else:
        assert columns == {}


def test_warm_up_is_the_base_under_its_own_noise():
    base = flow()
    learner = ACTIONS.learner(TwoGap(), base, seed=0)
    action, columns, _ = learner.policy.warm_up(states(), None, generator(0, "a"))
    assert torch.equal(action, base.decode(states(), torch.randn(64, 2, generator=generator(0, "a"))))
    assert columns == {}


def test_what_is_remembered():
    """Executed actions by default, so that any data serves; noise in the other variant."""
    for method, same in ((ACTIONS, True), (NOISE, False)):
        learner = method.learner(TwoGap(), Deaf(), seed=0)
        for _ in range(5):
            learner.step()
        columns = {name: column[: len(learner.memory)] for name, column in learner.memory.columns.items()}
        assert torch.equal(columns["action"], 0.5 * columns["observation"]) is same


def test_where_the_base_ignores_noise_its_critic_becomes_constant():
    learner = ACTIONS.learner(TwoGap(), Deaf(), seed=0)
    for _ in range(4):
        learner.step()
    agent, update = learner.agent, ACTIONS.rounds[1].updates[0]
    seen = learner.memory.columns["observation"][: len(learner.memory)]

    def spread():
        noise = torch.randn(32, len(seen), 2, generator=generator(1, "w")) / 1.5
        with torch.no_grad():
            return float(torch.stack([agent["noise_critic"](seen, w) for w in noise]).std(0).mean())

    learner.optimizers["noise_critic"] = replace(update.optimizer, learning_rate=1e-2).build(
        agent["noise_critic"].parameters()
    )
    before = spread()
    for i in range(300):
        learner._update(update, learner.memory.sample(64, generator(0, "b", i)), generator(0, "u", i))
    assert spread() < 0.15 * before


def test_a_constant_noise_critic_leaves_the_actor_its_entropy_alone():
    learner = ACTIONS.learner(TwoGap(), Deaf(), seed=0)
    learner.step()
    agent, batch = learner.agent, learner.memory.sample(16, generator(0, "b"))
    with torch.no_grad():
        agent["noise_critic"].layers[0].weight[:, 2:] = 0.0  # the rows of the noise
    parameters = list(agent["actor"].parameters())
    loss = ACTIONS.rounds[0].updates[2].loss(agent, batch, generator(0, "u")).value
    found = torch.autograd.grad(loss, parameters)
    _, logp = agent["actor"].sample(batch.observation, generator(0, "u"))
    alone = torch.autograd.grad(soft_policy_loss(torch.zeros(1, 16), logp, agent["temperature"]()), parameters)
    for one, two in zip(found, alone, strict=True):
        assert one.flatten().tolist() == pytest.approx(two.flatten().tolist(), abs=1e-7)


@both
def test_a_resumed_learner_goes_on_bit_by_bit(method):
    first = method.learner(TwoGap(), flow(0), seed=3)
    for _ in range(5):
        first.step()
    second = method.learner(TwoGap(), flow(1), seed=3)
    second.load_state_dict(deepcopy(first.state_dict()))
    for _ in range(3):
        one, two = first.step(), second.step()
        assert {k: float(v) for k, v in one.items()} == {k: float(v) for k, v in two.items()}
    assert all(torch.equal(v, second.agent.state_dict()[k]) for k, v in first.agent.state_dict().items())


def test_cloning_first_then_steering_with_a_resume_in_between():
    steering = small(dsrl.on_actions(width=8, layers=2))
    stages = dsrl.after_cloning(steering)
    cloning = replace(stages.stages[0], method=small_cloning(), until=Budget(updates=3))
    method = replace(stages, stages=(cloning, *stages.stages[1:]))
    first = method.learner(TwoGap(demonstrated=4), seed=0)
    for _ in range(8):
        first.step()
    assert isinstance(first.policy, dsrl.SteeredPolicy)
    assert first.clock.spent["env_steps"] == 10.0
    second = method.learner(TwoGap(demonstrated=4), seed=0)
    second.load_state_dict(deepcopy(first.state_dict()))
    for _ in range(2):
        one, two = first.step(), second.step()
        assert {k: float(v) for k, v in one.items()} == {k: float(v) for k, v in two.items()}


def small_cloning():
    return replace(flow_bc.cloning(Flow(width=8, layers=2, steps=3)), batch=16)


def test_the_loop_evaluates_what_acts():
    run = loop.run(
        ACTIONS, TwoGap(episodes=4), flow(), budget=Budget(env_steps=12), seed=0, cadence=loop.Cadence(evaluations=3)
    )
    steps, success = run.curve("eval/success")
    assert (steps, len(success)) == ([0, 2, 4, 6], 4)


def test_the_paper_s_settings():
    for method, noise in ((dsrl.method(), False), (dsrl.sac(), True)):
        steering = method.stages[1].method
        assert steering.acting == dsrl.Steering(bound=1.5, remembers_noise=noise)
        assert [one.repeat for one in steering.rounds] == ([20] if noise else [20, 10])
        temperature, critic, actor = steering.rounds[0].updates
        assert (temperature.target_entropy, critic.gamma, critic.polyak) == (0.0, 0.99, 0.005)
        assert critic.model.heads == 2 and critic.model.layer_norm and critic.model.activation is nn.Tanh
        assert (actor.model.width, actor.model.layers, actor.critic) == (2048, 3, "critic" if noise else "noise_critic")
        assert steering.batch == 256
        assert all(u.optimizer.learning_rate == 3e-4 for u in steering.updates())


def test_bad_input():
    with pytest.raises(ValueError, match="bound must be positive, got 0"):
        dsrl.Steering(bound=0.0)
    with pytest.raises(ValueError, match=r"decode\(observation, noise\), got NoneType"):
        ACTIONS.learner(TwoGap(), seed=0)
