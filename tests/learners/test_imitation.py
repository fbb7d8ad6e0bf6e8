"""Imitation of constructed solutions: targets, loss, bad input."""

from __future__ import annotations

import pytest
import torch

from policyopt.learners.imitation import Imitation, cross_entropy, expert_distribution
from policyopt.learners.update import Adam, NonFinite
from policyopt.methods.bq_nco import Nearest, Quotient
from policyopt.models.pointer import Pointer, masked_log_softmax
from policyopt.problems.decision.knapsack import Knapsack
from policyopt.problems.decision.routing import TSP

NETWORK = {"dim": 8, "layers": 1, "heads": 2, "feedforward": 8}
METHOD = Imitation(policy=Pointer(view=Quotient(), **NETWORK), batch=8, optimizer=Adam(), updates=10)


def test_the_gradient_is_probability_minus_target():
    scores = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    legal = torch.tensor([True, True, False, True, True]).expand(4, 5)
    target = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).expand(4, 5)
    logp = masked_log_softmax(scores, legal)
    cross_entropy(logp, target).backward()
    torch.testing.assert_close(scores.grad, (logp.exp() - target).detach() / 4)


def test_a_view_that_hides_the_expert_is_refused():
    choice = torch.tensor([[3, 4], [3, 4]])
    with pytest.raises(ValueError, match="hides the expert's action"):
        expert_distribution(choice, torch.tensor([[3], [5]]))
    restricted = Imitation(
        policy=Pointer(view=Nearest(count=1), **NETWORK), batch=64, optimizer=Adam(), updates=10
    ).learner(TSP(size=8, train_instances=20), seed=1)
    with pytest.raises(ValueError, match="hides the expert's action"):
        [restricted.step() for _ in range(10)]


def test_a_problem_that_is_not_constructed_is_refused():
    class Arithmetic:
        name = "arithmetic"

    with pytest.raises(ValueError, match=r"'arithmetic' is not solved step by step.*tsp, cvrp, op or knapsack"):
        METHOD.learner(Arithmetic(), seed=0)


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="got 0 and 10"):
        Imitation(policy=METHOD.policy, batch=0, optimizer=Adam(), updates=10)


def test_a_loss_that_is_not_finite_leaves_the_weights_alone():
    learner = METHOD.learner(Knapsack(size=6, train_instances=10), seed=0)
    learner.policy.scorer.score.bias.data.fill_(torch.inf)
    before = learner.policy.scorer.embed.weight.clone()
    with pytest.raises(NonFinite):
        learner.step()
    assert torch.equal(before, learner.policy.scorer.embed.weight)


def test_a_step_reports_its_cost_and_a_given_policy_is_trained():
    problem = Knapsack(size=6, train_instances=10)
    policy = METHOD.learner(problem, seed=4).policy
    before = policy.scorer.embed.weight.clone()
    learner = METHOD.learner(problem, policy, seed=0)
    metrics = learner.step()
    assert metrics["cost/env_steps"] == 8
    assert learner.clock.spent == {"env_steps": 8.0, "updates": 1}
    assert learner.policy is policy
    assert not torch.equal(before, policy.scorer.embed.weight)
