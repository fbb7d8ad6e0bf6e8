from dataclasses import replace

import pytest
import torch

from policyopt.learners.acting import Exploring
from policyopt.learners.off_policy import DeterministicPolicy, Round, SmoothedCritic, smoothed
from policyopt.methods import td3
from policyopt.models.bounded_actors import Bounded
from policyopt.models.q_functions import QFunctions
from policyopt.problems.control.environments import GymnasiumProblem
from policyopt.problems.control.two_gap import TwoGap
from policyopt.rollouts.replay import Interaction
from policyopt.types import generator

UPDATES = (SmoothedCritic(model=QFunctions(width=8)), DeterministicPolicy(model=Bounded(width=8)))
SMALL = replace(
    td3.method(), rounds=(Round(updates=UPDATES),), batch=16, collector=Interaction(environments=2, warm_up=4)
)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def test_the_paper_s_settings():
    critic, actor = td3.method().updates()
    assert (critic.noise, critic.clip, critic.gamma, actor.every, actor.polyak) == (0.2, 0.5, 0.99, 2, 0.005)
    assert td3.method().acting == Exploring(noise=0.1)


def test_smoothing_clips_noise_and_action():
    action = smoothed(torch.tensor([[0.0, 0.9, -0.2]]), torch.tensor([[2.0, 0.4, -0.1]]), 0.5)
    assert action.tolist() == [[0.5, 1.0, pytest.approx(-0.3)]]


def test_the_target_is_the_textbook_s():
    learner = replace(SMALL, collector=None).learner(TwoGap(demonstrated=4), seed=0)
    batch, agent = learner.memory.sample(32, generator(0, "b")), learner.agent
    wanted = UPDATES[0].target(agent, batch, generator(0, "t"))
    noise = 0.2 * torch.randn(32, 2, generator=generator(0, "t"))
    with torch.no_grad():
        action = (agent["actor_target"](batch.next_observation) + noise.clamp(-0.5, 0.5)).clamp(-1, 1)
        least = torch.minimum(*agent["target"](batch.next_observation, action))
    assert torch.allclose(wanted, batch.reward + 0.99 * (1.0 - batch.terminated.float()) * least)
    assert torch.equal(wanted[batch.terminated], batch.reward[batch.terminated])


def test_the_actor_climbs_the_first_value_and_its_update_is_delayed():
    learner = replace(SMALL, collector=None).learner(TwoGap(demonstrated=4), seed=0)
    batch, agent = learner.memory.sample(32, generator(0, "b")), learner.agent
    loss = UPDATES[1].loss(agent, batch, generator(0, "t"))
    action = agent["actor"](batch.observation)
    assert torch.allclose(loss.value, -agent["critic"](batch.observation, action)[0].mean())
    names = ("actor", "actor_target", "target", "critic")
    for moves in (False, True, False, True):
        before = {name: weights(agent[name]) for name in names}
        learner.step()
        moved = {name for name in names if not torch.equal(before[name], weights(agent[name]))}
        assert moved == (set(names) if moves else {"critic"})


def test_targets_follow_by_their_rate():
    learner = replace(SMALL, collector=None).learner(TwoGap(demonstrated=4), seed=0)
    before = weights(learner.agent["actor_target"])
    learner.step(), learner.step()
    wanted = before + 0.005 * (weights(learner.agent["actor"]) - before)
    assert torch.allclose(weights(learner.agent["actor_target"]), wanted, atol=1e-7)


def test_it_explores_around_its_mode_online():
    learner = SMALL.learner(GymnasiumProblem(id="Pendulum-v1"), seed=0)
    metrics = [learner.step() for _ in range(6)]
    assert "loss/value" in metrics[-1] and learner.clock.spent["env_steps"] == 12
    observation = torch.zeros(4000, 3)
    greedy = learner.policy.act(observation, None, generator(0, "a"), greedy=True)[0]
    noisy = learner.policy.act(observation, None, generator(0, "a"))[0]
    assert torch.equal(greedy, learner.agent["actor"].mode(observation))
    assert (noisy - greedy).std().item() == pytest.approx(0.1, rel=0.1)
    assert noisy.abs().max() <= 1.0


def test_bad_settings():
    with pytest.raises(ValueError, match="noise of exploration"):
        Exploring(noise=-1.0)
    with pytest.raises(ValueError, match="value_weight must be positive, got 0"):
        DeterministicPolicy(value_weight=0.0)
    with pytest.raises(ValueError, match="every must be a positive number of batches, got 0 for actor"):
        replace(SMALL, rounds=(Round(updates=(UPDATES[0], replace(UPDATES[1], every=0))),))
    with pytest.raises(ValueError, match="an actor needs positive sizes"):
        Bounded(width=0)
