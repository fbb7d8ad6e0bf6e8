from dataclasses import replace

import pytest
import torch

from policyopt.learners.off_policy import DeterministicPolicy, Round, SmoothedCritic
from policyopt.methods import td3, td3_bc
from policyopt.models.bounded_actors import Bounded
from policyopt.models.q_functions import QFunctions
from policyopt.objectives.behaviour import BehaviourRegularizer
from policyopt.problems.control.checker import Checker
from policyopt.types import generator

PROBLEM = Checker(logged=300)


def small(method):
    critic, actor = method.updates()
    updates = replace(critic, model=QFunctions(width=8)), replace(actor, model=Bounded(width=8))
    return replace(method, rounds=(Round(updates=updates),), batch=16, collector=None)


def trained(method, steps=6):
    learner = small(method).learner(PROBLEM, seed=0)
    for _ in range(steps):
        learner.step()
    return learner


def test_the_loss_is_the_textbook_s():
    learner = small(td3_bc.method()).learner(PROBLEM, seed=0)
    batch, agent = learner.memory.sample(32, generator(0, "b")), learner.agent
    loss = next(u for u in learner.method.updates() if u.trains == "actor").loss(agent, batch, generator(0, "l"))
    action = agent["actor"](batch.observation)
    q = agent["critic"](batch.observation, action)[0]
    wanted = -2.5 * q.mean() / q.abs().mean() + (action - batch.action).square().mean()
    assert torch.allclose(loss.value, wanted)


def test_without_weight_it_is_td3_bit_for_bit():
    actor = DeterministicPolicy(regularizer=BehaviourRegularizer(weight=0.0))
    plain = trained(td3.method())
    without = trained(replace(td3.method(), rounds=(Round(updates=(SmoothedCritic(), actor)),)))
    assert all(torch.equal(v, without.agent.state_dict()[k]) for k, v in plain.agent.state_dict().items())
    pulled = trained(
        replace(
            td3.method(),
            rounds=(Round(updates=(SmoothedCritic(), replace(actor, regularizer=BehaviourRegularizer()))),),
        )
    )
    assert not torch.equal(*(each.agent["actor"].layers[0].weight for each in (plain, pulled)))


def test_observations_are_standardized_and_the_numbers_are_saved_with_the_agent():
    learner = small(td3_bc.method()).learner(PROBLEM, seed=0)
    data, raw = learner.memory.columns, PROBLEM.transitions()
    mean, deviation = raw.observation.mean(0), raw.observation.std(0, correction=0)
    assert torch.allclose(data["observation"], (raw.observation - mean) / (deviation + 1e-3), atol=1e-5)
    assert torch.allclose(data["next_observation"], (raw.next_observation - mean) / (deviation + 1e-3), atol=1e-5)
    assert torch.allclose(learner.agent.state_dict()["standardization.shift"], mean)
    action = learner.policy.act(raw.observation, None, generator(0, "a"), True)[0]
    assert torch.allclose(action, learner.agent["actor"](data["observation"]), atol=1e-6)
    other = small(td3_bc.method()).learner(Checker(logged=300, seed=5), seed=1)
    other.load_state_dict(learner.state_dict())
    assert torch.equal(other.policy.act(raw.observation, None, generator(0, "a"), True)[0], action)


def test_a_resumed_learner_goes_on_bit_by_bit():
    first, second = trained(td3_bc.method(), 3), small(td3_bc.method()).learner(PROBLEM, seed=0)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        first.step(), second.step()
    assert all(torch.equal(v, second.agent.state_dict()[k]) for k, v in first.agent.state_dict().items())


def test_standardization_needs_data():
    with pytest.raises(ValueError, match="needs collector=None"):
        replace(td3_bc.method(), collector=td3.method().collector)
