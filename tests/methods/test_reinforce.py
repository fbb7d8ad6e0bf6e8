"""REINFORCE in control: the gradient against its formula, a baseline from earlier episodes, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import torch

from matching import Match
from policyopt import registry
from policyopt.learners.update import Adam
from policyopt.methods import ppo, reinforce
from policyopt.problems.control.environments import GymnasiumProblem
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.rollouts.episodes import Episodes
from policyopt.types import Clock


def test_every_action_is_paid_for_what_follows_it() -> None:
    method = replace(reinforce.control(), collector=Episodes(episodes=4, gamma=0.9))
    problem = GymnasiumProblem(id="CartPole-v1")
    policy = method.policy.build(problem, seed=0)
    batch = method.collector(policy, problem, Clock(seed=3)).batches["rollouts"]
    prepared = method.objective.prepare(method.credit[0](batch))
    loss = method.objective(policy.evaluate(prepared), prepared)
    mine = torch.autograd.grad(loss.value, list(policy.parameters()))
    total = torch.zeros(())
    for row in range(4):
        length = int(batch.mask[row].sum())
        logp = policy.distribution(batch.observations[row, :length]).log_prob(batch.actions[row, :length])
        for step in range(length):
            later = sum(0.9**k * float(batch.rewards[row, step + k]) for k in range(length - step))
            total = total - logp[step] * later / 4
    for left, right in zip(mine, torch.autograd.grad(total, list(policy.parameters())), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_the_baseline_does_not_know_the_present_episodes() -> None:
    method = replace(reinforce.control_baseline(), collector=Episodes(episodes=4))
    problem = GymnasiumProblem(id="CartPole-v1")
    policy, (credit,) = method.policy.build(problem, seed=0), method.credit
    memory = credit.memory()
    first = credit(method.collector(policy, problem, Clock(seed=0)).batches["rollouts"], memory)
    assert torch.equal(first.advantage, first.returns * first.mask), "nothing is known before the first batch"
    second = method.collector(policy, problem, Clock(seed=1)).batches["rollouts"]
    richer = second.replace(rewards=second.rewards * 2)
    plain, more = (credit(batch, deepcopy_of(memory, credit)) for batch in (second, richer))
    torch.testing.assert_close(plain.returns - plain.advantage, more.returns - more.advantage)


def deepcopy_of(memory: object, credit: object) -> object:
    fresh = credit.memory()  # type: ignore[attr-defined]
    fresh.load_state_dict(memory.state_dict())  # type: ignore[attr-defined]
    return fresh


def test_it_learns() -> None:
    method = replace(reinforce.control(), collector=Episodes(episodes=256), optimizer=Adam(learning_rate=0.02))
    learner = method.learner(Match(), seed=0)
    returns = [float(learner.step()["episode/return"]) for _ in range(40)]
    assert sum(returns[:3]) / 3 < -8.0 and sum(returns[-3:]) / 3 > 0.7 * sum(returns[:3]) / 3


def test_the_problem_decides_between_language_and_control() -> None:
    cart, sums = GymnasiumProblem(id="CartPole-v1"), Arithmetic(terms=2)
    assert registry.suited("ppo", cart) == "ppo:control" and registry.suited("ppo", sums) == "ppo"
    assert registry.suited("reinforce:control_baseline", cart) == "reinforce:control_baseline"
    assert registry.suited("sac", cart) == "sac"
    assert ppo.method().objective == ppo.control().objective, "one objective for both"
